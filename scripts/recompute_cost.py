"""Recompute what was spent from an exported ledger, without anything of the broker's: Python's library alone.

    python scripts/recompute_cost.py ledger.csv                 # everything
    python scripts/recompute_cost.py ledger.csv --rental ID …   # these rentals

Prints one JSON object: the sum in USD, the sum of each rental, and how many entries were read. Exit 1 when an entry
does not sum to zero in each unit, or when `--expect USD` differs from the sum.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from decimal import Decimal
from pathlib import Path


def plain(cell: str) -> str:
    """Undo the export's guard against spreadsheets that take a text for a formula: an apostrophe in front."""
    return cell[1:] if cell.startswith("'") else cell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ledger", type=Path, help="the CSV of `broker ledger export`")
    parser.add_argument("--rental", action="append", default=[], help="only this rental; may be repeated")
    parser.add_argument("--expect", type=Decimal, help="the sum in USD that it must be")
    given = parser.parse_args()

    spent: dict[str, Decimal] = defaultdict(Decimal)
    balance: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    with given.ledger.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            # Amounts are signed, debits positive: what is spent is the balance of the expense accounts.
            amount = Decimal(plain(row["amount"]))
            balance[row["seq"], row["unit"]] += amount
            rental = plain(row["rental"])
            if plain(row["account"]).startswith("Expenses:") and (not given.rental or rental in given.rental):
                if row["unit"] != "USD":
                    print(f"entry {row['seq']}: expense in {row['unit']}, not USD", file=sys.stderr)
                    return 1
                spent[rental] += amount

    total = sum(spent.values(), Decimal(0))
    document = {
        "total_usd": f"{total:f}",
        "rentals": {rental: f"{amount:f}" for rental, amount in sorted(spent.items())},
        "entries": len({seq for seq, _ in balance}),
    }
    print(json.dumps(document))
    for (seq, unit), amount in balance.items():
        if amount:
            print(f"entry {seq} does not balance: {amount} {unit} too much", file=sys.stderr)
            return 1
    if given.expect is not None and total != given.expect:
        print(f"the ledger sums to {total} USD, not to {given.expect}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
