"""Verifies an export of decisions with nothing of the broker: Python, and for the signatures its package `cryptography` where it
is installed, else openssl (3 or later; some hundred signatures a second and processor; `--openssl`: in any case).

    unzip decisions.zip -d decisions && python decisions/verify.py decisions

Checks that no leaf was changed, moved, added or removed before the last (the chain), that each is signed by the key in
`public.pem`, and that the facts, policies and proposals that records name are the ones beside them. Exit 0 when all holds.
What the last hash should be is not in the export: compare it with one that you kept, or with a signed checkpoint.
"""

import base64
import concurrent.futures
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

AT_ONCE = 1000


def main(folder: pathlib.Path, with_openssl: bool) -> int:
    leaves = (folder / "decisions.jsonl").read_bytes().split(b"\n")[:-1]
    chain = (folder / "decisions.chain").read_text().split()
    wrong = [] if len(leaves) == len(chain) else [f"{len(leaves)} leaves, {len(chain)} hashes"]
    before = bytes(32)
    for number, leaf in enumerate(leaves, 1):
        before = hashlib.sha256(before + hashlib.sha256(b"\x00" + leaf).digest()).digest()
        if number <= len(chain) and chain[number - 1] != before.hex():
            wrong.append(f"leaf {number} does not follow from the one before")
            break
    # others are something else that the broker decided, e.g. a budget's breaker: they are in the chain
    signed = ((number, leaf) for number, leaf in enumerate(leaves, 1) if leaf.startswith(b'{"record":'))
    decisions = 0
    while page := list(itertools.islice(signed, AT_ONCE)):
        decisions += len(page)
        told = [parts(leaf) for _, leaf in page]
        good = are_signed_by_openssl(folder, told) if with_openssl else are_signed(folder, told)
        for (number, _), (text, _), is_signed in zip(page, told, good, strict=True):
            if not is_signed:
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
    elif record.get("kind") == "said":
        said = json.loads(facts.read_bytes())
        if not holds(folder / "proposals" / f"{said['proposal']}.json", said["sha256"]):
            found.append(f"proposal {said['proposal']} is")
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


def are_signed(folder: pathlib.Path, told: list[tuple[bytes, bytes]]) -> list[bool]:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # an auditor may not have it
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    public = load_pem_public_key((folder / "public.pem").read_bytes())
    if not isinstance(public, Ed25519PublicKey):
        return [False] * len(told)
    found = []
    for text, signature in told:
        try:
            public.verify(signature, text)
            found.append(True)
        except InvalidSignature:
            found.append(False)
    return found


def are_signed_by_openssl(folder: pathlib.Path, told: list[tuple[bytes, bytes]]) -> list[bool]:
    """openssl verifies one signature a process, so as many processes at once as there are processors."""
    with tempfile.TemporaryDirectory() as own, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:

        def is_signed(number: int) -> bool:
            text, signature = pathlib.Path(own) / f"{number}.text", pathlib.Path(own) / f"{number}.signature"
            text.write_bytes(told[number][0])
            signature.write_bytes(told[number][1])
            command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(folder / "public.pem"), "-rawin"]
            command += ["-in", str(text), "-sigfile", str(signature)]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0

        return list(pool.map(is_signed, range(len(told))))


if __name__ == "__main__":
    given = [each for each in sys.argv[1:] if each != "--openssl"]
    has_none = importlib.util.find_spec("cryptography") is None
    sys.exit(main(pathlib.Path(given[0] if given else "."), has_none or "--openssl" in sys.argv))
