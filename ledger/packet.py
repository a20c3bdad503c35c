"""What goes into an audit packet so that it can be checked without our software: the exact bytes, and how to read them."""

from __future__ import annotations

README = """\
# Audit packet of broker's books

Nothing here needs broker's software. All that is needed is `sha256sum` and any program that reads JSON and CSV;
`check.py` does the checks below with Python's standard library alone: `python3 check.py`.

| file | what |
| --- | --- |
| entries.jsonl | one line an entry, in the order of the books: the exact bytes that were stored and hashed |
| entries.csv | the same entries: seq, id, recorded_at_us, sha256 of the line in entries.jsonl |
| postings.csv | one row a posting, amounts as exact decimals, debits positive |
| rentals.csv | what was rented and at which price: the facts behind the accruals |
| invoices.csv, exceptions.csv | imported invoices, what they left unexplained, and who decided what |
| sealed/ | the hash-chained streams with their signed checkpoints (RFC 6962 roots, Ed25519 signed notes) |
| manifest.json, SHA256SUMS, manifest.sig | sha256 of every file: `sha256sum -c SHA256SUMS`; the manifest's signature |

Amounts in entries.jsonl are whole nano-units (1e-9 of the unit); times are microseconds since 1970, UTC.

What must hold, and `check.py` checks:

1. Every line of entries.jsonl has the sha256 that entries.csv gives for it, and no line is missing or added.
2. `seq` has no gaps where the packet is of the whole books (manifest.json: "scope": "all").
3. The lines of each entry sum to zero in each unit, memo accounts (`Memo:`) and real accounts apart.
4. Every hold is resolved at most once (`hold.void`, `hold.expire`).
5. postings.csv says what entries.jsonl says, to the last digit.
"""

CHECK = '''\
"""Checks this audit packet with Python's standard library alone. Exit status 0: everything holds."""
import csv, hashlib, json, sys
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

here, found = Path(__file__).resolve().parent, []
for line in (here / "SHA256SUMS").read_text().splitlines():
    digest, name = line.split("  ", 1)
    if not (here / name).is_file() or hashlib.sha256((here / name).read_bytes()).hexdigest() != digest:
        found.append(f"{name}: missing or changed")
lines = (here / "entries.jsonl").read_bytes().split(b"\\n")[:-1]
with open(here / "entries.csv", newline="") as file:
    heads = list(csv.DictReader(file))
if len(lines) != len(heads):
    found.append(f"{len(lines)} entries, {len(heads)} rows in entries.csv")
scope = json.loads((here / "manifest.json").read_text())["scope"]
resolved, postings, before = defaultdict(int), [], 0
for head, line in zip(heads, lines):
    event, seq = json.loads(line), int(head["seq"])
    if hashlib.sha256(line).hexdigest() != head["sha256"]:
        found.append(f"entry {seq}: its bytes were changed")
    if scope == "all" and seq != before + 1:
        found.append(f"entry {before + 1} is missing")
    before = seq
    sums = defaultdict(int)
    for number, each in enumerate(event["lines"]):
        sums[each["unit"], each["account"].startswith("Memo:")] += each["nano"]
        postings.append((head["seq"], str(number), each["account"], each["unit"], Decimal(each["nano"]).scaleb(-9)))
    found += [f"entry {seq}: does not balance in {unit}" for (unit, _), nano in sums.items() if nano]
    if event["kind"] in ("hold.void", "hold.expire"):
        resolved[event["hold"]] += 1
found += [f"hold {hold} was resolved {count} times" for hold, count in resolved.items() if count > 1]
with open(here / "postings.csv", newline="") as file:
    told = [(r["seq"], r["line"], r["account"], r["unit"], Decimal(r["amount"])) for r in csv.DictReader(file)]
if told != postings:
    found.append("postings.csv differs from entries.jsonl")
print("\\n".join(found) or f"{len(lines)} entries, {len(postings)} postings: everything holds")
sys.exit(1 if found else 0)
'''
