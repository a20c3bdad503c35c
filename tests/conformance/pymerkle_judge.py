"""RFC 6962 by another's hand: our roots and proofs held against pymerkle, in an environment of its own.

pymerkle is GPL: it is a judge, never a dependency. `python tests/conformance/pymerkle_judge.py FOLDER` makes the environment in
FOLDER (once), runs this file there with ours beside it, and exits 1 at the first difference.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import venv
from pathlib import Path

PYMERKLE = "pymerkle==6.1.0"
SIZES = (1, 2, 3, 5, 8, 13, 64, 100, 257)

# What runs there: leaves on standard input, roots of every size and the leaf hashes on standard output.
THERE = """
import json, sys
from pymerkle import InmemoryTree
tree, told = InmemoryTree(algorithm="sha256"), []
for leaf in json.load(sys.stdin):
    tree.append_entry(bytes.fromhex(leaf))
    told.append([tree.get_leaf(tree.get_size()).hex(), tree.get_state().hex()])
json.dump(told, sys.stdout)
"""


def main(folder: Path) -> int:
    from ledger.merkle import Frontier, inclusion, is_included, leaf_hash  # noqa: PLC0415 - with the checkout on the path

    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PYMERKLE], check=True)
    chance = random.Random(11)
    leaves = [chance.randbytes(chance.randrange(0, 200)) for _ in range(max(SIZES))]
    asked = json.dumps([leaf.hex() for leaf in leaves])
    done = subprocess.run([python, "-c", THERE], input=asked, capture_output=True, text=True, check=True)
    frontier, hashes = Frontier(), []
    for number, (leaf, (theirs, root)) in enumerate(zip(leaves, json.loads(done.stdout), strict=True), start=1):
        hashes.append(leaf_hash(leaf))
        frontier.add(hashes[-1])
        if (hashes[-1].hex(), frontier.root().hex()) != (theirs, root):
            print(f"leaf {number}: {hashes[-1].hex()} and root {frontier.root().hex()}, pymerkle says {theirs}, {root}")
            return 1
        if number in SIZES:
            at = chance.randrange(number)
            if not is_included(hashes[at], at, number, inclusion(hashes, at), bytes.fromhex(root)):
                print(f"the proof of leaf {at} does not lead to pymerkle's root of {number}")
                return 1
    print(f"{len(leaves)} roots and leaf hashes, {len(SIZES)} proofs: all are pymerkle's")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main(Path(sys.argv[1])))
