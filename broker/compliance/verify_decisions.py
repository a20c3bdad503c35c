"""Verifies an export of decisions with nothing of the broker: Python, and openssl for the signatures.

    unzip decisions.zip -d decisions && python decisions/verify.py decisions

Checks that no leaf was changed, moved, added or removed before the last (the chain), that each is signed by the key in
`public.pem`, and that the facts, policies and proposals that records name are the ones beside them. Exit 0 when all holds.
What the last hash should be is not in the export: compare it with one that you kept, or with a signed checkpoint.
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
    decisions = 0
    for number, leaf in enumerate(leaves, 1):
        if not leaf.startswith(b'{"record":'):
            continue  # something else that the broker decided, e.g. a budget's breaker: it is in the chain
        decisions += 1
        text, signature = parts(leaf)
        if not signed(folder, text, signature):
            wrong.append(f"leaf {number} is not signed by public.pem")
        wrong += [f"leaf {number}: its {each} missing or changed" for each in unlike(folder, json.loads(text))]
    for each in wrong:
        print(each)
    print(f"{decisions} decisions, {len(wrong)} problems, last hash {before.hex()}")
    return 1 if wrong else 0


def unlike(folder: pathlib.Path, record: dict[str, str]) -> list[str]:
    """What of that which a record names is not beside it, byte for byte."""
    found = []
    facts = folder / "facts" / f"{record['facts_sha256']}.json"
    if not holds(facts, record["facts_sha256"]):
        found.append("facts are")
    elif record.get("kind") == "pin":
        for proposal, sha256, _ in json.loads(facts.read_bytes())["active"]:
            if not holds(folder / "proposals" / f"{proposal}.json", sha256):
                found.append(f"proposal {proposal} is")
    none = hashlib.sha256(b"null").hexdigest()  # what was decided without a policy
    if record["policy_sha256"] != none and not holds(
        folder / "policies" / f"{record['policy_hash']}.json", record["policy_sha256"]
    ):
        found.append("policy is")
    return found


def holds(file: pathlib.Path, sha256: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256


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
