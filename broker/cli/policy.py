"""`policy validate` and `policy test`: what a residency policy says, before anybody proposes it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli import exits, options
from broker.cli.client import Client
from broker.cli.exits import ERROR, USAGE, Failure
from broker.cli.options import Target
from broker.cli.output import document, line, table

if TYPE_CHECKING:
    from solver.residency.document import Reading

Document = dict[str, Any]
PolicyFile = Annotated[Path, typer.Argument(help="A policy document (YAML).", metavar="FILE")]
DataClass = Annotated[
    str,
    typer.Option("--class", help="The class of the data: public, internal, confidential, personal, health, secret."),
]


def validate(file: PolicyFile, json: options.Json = False) -> None:
    """Whether a policy document can be read: all that is wrong with it, with line, column and how to mend it.

    Exit 0 when it can, 1 when not. Warnings change nothing.
    """
    reading = read(file)
    if json:
        document(
            {
                "valid": reading.document is not None,
                "policy": reading.document.name if reading.document else None,
                "version": reading.document.version if reading.document else None,
                "findings": _findings(reading),
            }
        )
    else:
        _tell(file, reading, sys.stdout)
        if reading.document:
            count = len(reading.document.rules)
            line(f"{file}: policy {reading.document.label} is valid, {count} rule{'s' if count != 1 else ''}")
    raise typer.Exit(exits.OK if reading.document else ERROR)


def test(
    file: PolicyFile,
    target: Target,
    *,
    offers: Annotated[
        str, typer.Option(help="A JSON file of offers (`broker offers --json`), or `live`: those of now.")
    ],
    data_class: DataClass = "internal",
    node: Annotated[
        str, typer.Option("--for", help="A project's path in the tree, for rules of some projects.")
    ] = "default",
) -> None:
    """What a policy says of each offer, and why. Nothing is changed.

    Offers of a file are judged as machines alone, unless they say where the other data paths lead; `live` asks the broker,
    which knows where it keeps what.
    """
    reading = read(file)
    if reading.document is None:
        _tell(file, reading, sys.stderr)
        raise Failure(f"{file} is not a valid policy", ERROR)
    if offers == "live":
        text = file.read_text(encoding="utf-8")

        async def ask(client: Client) -> Document:
            body = {"text": text, "data_class": data_class, "node": node}
            return await client.post("/v1/policies/test", body, again=True)

        told = target.ask(ask)
    else:
        told = _of_file(reading, Path(offers), data_class, node)
    if target.json:
        document(told)
    else:
        print_tried(told)
    raise typer.Exit(exits.OK)


def _of_file(reading: Reading, file: Path, data_class: str, node: str) -> Document:
    # Imported here: only who tries a policy waits for the evaluator.
    from broker.compliance.trial import facts_of_document, of_machines, summary, tried  # noqa: PLC0415
    from solver.errors import UnknownClass  # noqa: PLC0415
    from solver.residency.classes import raised  # noqa: PLC0415
    from solver.residency.effective import effective  # noqa: PLC0415

    assert reading.document
    try:
        policy = effective([reading.document], data_class=raised("public", data_class), project=node)
        listed = [facts_of_document(each) for each in read_offers(file)]
    except UnknownClass as wrong:
        raise Failure(f"--class: {wrong}", USAGE) from wrong
    except ValueError as wrong:
        raise Failure(f"--offers {file}: {wrong}", USAGE) from wrong
    alone = of_machines(policy)
    now_us = time.time_ns() // 1000
    some = [one for key, facts in listed for one in tried(policy if facts.paths else alone, [(key, facts)], now_us)]
    return {
        "object": "list",
        "policy": reading.document.label,
        "data_class": data_class,
        "data": [each.shape() for each in some],
        "summary": summary(some),
        "findings": _findings(reading),
    }


def read_offers(file: Path) -> Sequence[Document]:
    """The offers of a file: a JSON list, an object with `data`, or one object a line. Raises Failure, ValueError."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as failure:
        raise Failure(f"--offers {file}: {failure.strerror}", USAGE) from failure
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = [json.loads(each) for each in text.splitlines() if each.strip()]
    listed = found.get("data", [found]) if isinstance(found, dict) else found
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise ValueError("it is neither a list of offers nor what `broker offers --json` prints")
    return listed


def print_tried(told: Document) -> None:
    from broker.compliance.trial import sentence  # noqa: PLC0415 - see `_of_file`

    table(("offer", "outcome", "why"), [(each["key"], each["outcome"], _why(each)) for each in told["data"]])
    line(f"{told['policy']} for class {told['data_class']}: {sentence(told['summary'])}")


def _why(tried: Document) -> str:
    first = tried["reasons"][0]
    verb = "is" if first["code"] in ("allowed", "denied") else "is not"
    return f"{first['rule_id']}: {first['field']} {first['found']} {verb} {first['wanted']}"


def read(file: Path) -> Reading:
    """What is in a policy file. Raises Failure (usage) when there is no such text."""
    from solver.residency.document import read_document  # noqa: PLC0415 - see `_of_file`

    try:
        return read_document(file.read_text(encoding="utf-8"))
    except OSError as failure:
        raise Failure(f"{file}: {failure.strerror}", USAGE) from failure
    except UnicodeDecodeError as failure:
        raise Failure(f"{file}: not UTF-8 text (byte {failure.start})", USAGE) from failure


def _findings(reading: Reading) -> list[Document]:
    names = ("severity", "code", "message", "line", "column", "suggestion")
    return [{name: getattr(each, name) for name in names} for each in reading.findings]


def _tell(file: Path, reading: Reading, stream: Any) -> None:
    for each in reading.findings:
        line(f"{file}:{each.line}:{each.column}: {each.severity}: {each.message} [{each.code}]", stream)
        if each.suggestion:
            line(f"    {each.suggestion}", stream)


def schema() -> None:
    """The JSON Schema of policy documents."""
    from solver.residency.schema import schema as published  # noqa: PLC0415 - see `_of_file`

    document(published())


def groups(json: options.Json = False) -> None:
    """The groups of countries that policies may name: members with their dates and conditions, and sources."""
    from solver.residency.groups import GROUPS, TABLE  # noqa: PLC0415 - see `_of_file`

    rows = [
        (name, each.country, each.since or "-", each.until or "-", each.needs or "-", each.note or "")
        for name, group in GROUPS.items()
        for each in group.dated
    ]
    if json:
        names = ("group", "country", "from", "until", "needs", "note")
        sources = {
            name: {"title": each.title, "source": each.source, "as_of": each.as_of} for name, each in GROUPS.items()
        }
        document({"table": TABLE, "groups": sources, "members": [dict(zip(names, row, strict=True)) for row in rows]})
    else:
        table(("group", "country", "from", "until", "needs", "note"), rows)
