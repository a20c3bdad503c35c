"""`python -m solver`: one snapshot as JSON per line on standard input, one plan as JSON per line on standard output.

A long-lived child of the broker, which kills it when it takes too long. A line that cannot be planned is answered by
`{"error": {"code", "message"}}`, and the next line is read. It ends at the end of its input. `--stage greedy` plans without the
program, `--effort` says how much is done for large queues, `--schema` prints the JSON Schemas of snapshot and plan.
"""

from __future__ import annotations

import argparse
import json
import sys

import msgspec

from solver.errors import SolverError
from solver.fluid.effort import Effort
from solver.plan import Stage, decode, solve
from solver.types import encode, json_schemas


def answer(line: bytes, stage: Stage, effort: Effort = "normal") -> bytes:
    """The plan for one line, or what was wrong with it."""
    try:
        return encode(solve(decode(line), stage=stage, effort=effort))
    except SolverError as error:
        return _refusal(error.code, str(error))
    except msgspec.DecodeError as error:  # ValidationError is one
        return _refusal("bad_snapshot", f"the line is not a snapshot: {error}")


def _refusal(code: str, message: str) -> bytes:
    return msgspec.json.encode({"error": {"code": code, "message": message}})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m solver", description=__doc__)
    parser.add_argument("--stage", choices=["program", "greedy"], default="program")
    parser.add_argument("--effort", choices=["fast", "normal", "certify"], default="normal")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schemas and end")
    arguments = parser.parse_args()
    if arguments.schema:
        print(json.dumps(json_schemas(), indent=2, sort_keys=True))
        return
    for line in sys.stdin.buffer:
        if line.strip():
            sys.stdout.buffer.write(answer(line, arguments.stage, arguments.effort) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
