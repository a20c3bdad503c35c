"""The ledger's benchmark: the books on both databases, and finance's exports.

`python -m benchmarks.ledger --json` prints one document. PostgreSQL is measured where BROKER_TEST_DATABASE_URL names a server
(`python tests/support/postgres_server.py python -m benchmarks.ledger --json` starts one).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from benchmarks import ledger_books, ledger_finance
from benchmarks.calibrate import calibrate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--entries", type=int, default=10_000, help="entries of four lines each (default 10,000)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs (default 3)")
    parser.add_argument("--rows", type=int, default=0, help="rows of finance's FOCUS export (default 0: not measured)")
    given = parser.parse_args()
    found: dict[str, Any] = {"calibration": calibrate(), "load_1m": os.getloadavg()[0]}
    found["books"] = [ledger_books.measure(entries=given.entries, rounds=given.rounds)]
    if server := os.environ.get("BROKER_TEST_DATABASE_URL"):
        found["books"].append(ledger_books.measure(entries=given.entries, rounds=given.rounds, server=server))
    if given.rows:
        found["focus_export"] = ledger_finance.measure(given.rows, given.rounds)
    if given.json:
        print(json.dumps(found, indent=2))
        return 0
    for each in found["books"]:
        print(
            f"{each['database']}: {each['postings_per_s']:,.0f} postings/s, {each['ratio_of_raw']:.2f}x of raw inserts, "
            f"verify {each['verify']['postings_per_cpu_s']:,.0f} postings per CPU-s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
