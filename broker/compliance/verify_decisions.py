"""Verifies an export of decisions with nothing of the broker: Python, and openssl for the signatures.

    unzip decisions.zip -d decisions && python decisions/verify.py decisions

Checks that no leaf was changed, moved, added or removed before the last (the chain), that each is signed by the key in
`public.pem`, and that the facts that records name are the ones beside them. Exit 0 when all holds. What the last hash should
be is not in the export: compare it with one that you kept, or with a signed checkpoint.
"""

import base64
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile


def main(folder: pathlib.Path) -> int:
    leaves = (folder / "decisions.jsonl").read_bytes().split(b"\n")[:-1]
    chain = (folder / "decisions.chain").read_text().split()
    wrong = [] if len(leaves) == len(chain) else [f"{len(leaves)} leaves, {len(chain)} hashes"]
    before = bytes(32)
    for number, leaf in enumerate(leaves, 1):
        before = hashlib.sha256(before + hashlib.sha256(b"\x00" + leaf).digest()).digest()
        if number <= len(chain) and chain[number - 1] != before.hex():
            wrong.append(f"leaf {number} does not follow from the one before")
            break
    for number, leaf in enumerate(leaves, 1):
        text, signature = parts(leaf)
        if not signed(folder, text, signature):
            wrong.append(f"leaf {number} is not signed by public.pem")
        facts = json.loads(text)["facts_sha256"]
        file = folder / "facts" / f"{facts}.json"
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != facts:
            wrong.append(f"leaf {number}: its facts are missing or were changed")
    for each in wrong:
        print(each)
    print(f"{len(leaves)} decisions, {len(wrong)} problems, last hash {before.hex()}")
    return 1 if wrong else 0


def parts(leaf: bytes) -> tuple[bytes, bytes]:
    """The record's exact bytes, and the signature over them."""
    start = leaf.index(b'"record":') + len(b'"record":')
    end = leaf.rindex(b',"key":')
    return leaf[start:end], base64.b64decode(json.loads(leaf)["signature"])


def signed(folder: pathlib.Path, text: bytes, signature: bytes) -> bool:
    with tempfile.TemporaryDirectory() as own:
        (pathlib.Path(own) / "text").write_bytes(text)
        (pathlib.Path(own) / "signature").write_bytes(signature)
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(folder / "public.pem"), "-rawin"]
        command += ["-in", f"{own}/text", "-sigfile", f"{own}/signature"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
