"""`audit where|export|replay`: where a batch ever was, on what evidence, and whether that can be made again."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.completion import batch_ids
from broker.cli.exits import ERROR, USAGE, Failure
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line, table

Document = dict[str, Any]


def where(
    batch: Annotated[str, typer.Argument(help="A batch's id.", metavar="BATCH", autocompletion=batch_ids)],
    target: Target,
) -> None:
    """Which countries, operators and machines ever held a batch's input, checkpoints or output, on what evidence."""

    async def work(client: Client) -> int:
        found = await client.get(f"/v1/audit/where/{batch}")
        if target.json:
            document(found)
            return exits.OK
        rows = [
            (each["rental"], each["offer"], *_place(place)) for each in found["machines"] for place in each["places"]
        ]
        rows += [
            (each["rental"], "its address", call["country"], "-", "called from there", *_times(call))
            for each in found["machines"]
            for call in each["addresses"]
        ]
        table(("machine", "offer", "country", "operator", "evidence", "from", "until", "decisions"), rows)
        paths = [(each["path"], *_place(each)) for each in found["data_paths"]]
        table(("data path", "country", "operator", "evidence", "from", "until", "decisions"), paths)
        line(
            f"countries: {', '.join(found['countries']) or 'none'}; operators: {', '.join(found['operators']) or 'none'}"
        )
        for each in found["reused"]:
            who = ", ".join(one["rental"] for one in each["machines"]) or "none of its own"
            places = f"{', '.join(each['countries']) or 'none'}; operators: {', '.join(each['operators']) or 'none'}"
            what = "Some of those" if each["lines"] is None else f"{each['lines']} answers"
            line(f"{what} are those of {each['batch']}, computed by {who}; countries: {places}")
        line(f"refused {len(found['refused'])} times")
        for each in found["deleted"]:
            keys = f"; keys destroyed: {' '.join(each['keys_destroyed'])}" if each["keys_destroyed"] else ""
            line(f"{each['what']} deleted {_time(each['at_us'])} ({each['why']}, decision {each['decision']}){keys}")
        for each in found["keys"]:
            line(f"{each['of']}: {_key(each)}")
        return exits.OK

    target.run(work)


def _key(each: Document) -> str:
    if each["state"] == "not_sealed":
        return "stored as it is, not sealed"
    name = f"with key {each['key_sha256'][:16]} of {each['owner']}"
    if each["state"] == "sealed":
        return f"sealed {name}"
    return f"was sealed {name}, which was destroyed {_time(each['destroyed_us'])} (decision {each['decision']})"


def _place(each: Document) -> tuple[str, ...]:
    return each["country"] or "unknown", each["operator"] or "unknown", _evidence(each), *_times(each)


def _times(each: Document) -> tuple[str, str, str]:
    return _time(each["first_us"]), _time(each["last_us"]), f"{each['first_decision']}–{each['last_decision']}"


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _evidence(each: Document) -> str:
    return "; ".join(f"{one['kind']}: {one['source']}" for one in each["evidence"]) or "none"


def replay(
    target: Target,
    *,
    batch: Annotated[
        str | None, typer.Option(help="Only decisions about this batch.", autocompletion=batch_ids)
    ] = None,
) -> None:
    """Make every sealed decision again, as of its time, and compare bit for bit. Exit 1 when one differs."""

    async def work(client: Client) -> int:
        count, after = 0, 0
        mismatches: list[Document] = []
        while True:
            page = await client.get("/v1/audit/replay", {"batch": batch, "after": after})
            count, mismatches = count + page["replayed"], mismatches + page["mismatches"]
            if page["next_after"] is None:
                break
            after = page["next_after"]
        if target.json:
            document({"replayed": count, "mismatches": mismatches})
        else:
            for each in mismatches:
                line(f"decision {each['seq']} about {each['batch']}: {each['wrong']}")
            line(f"{count} decisions made again, {len(mismatches)} differ")
        return ERROR if mismatches else exits.OK

    target.run(work)


def export(
    target: Target,
    *,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the zip here, not to standard output.")] = None,
) -> None:
    """All sealed decisions with their policies and facts, as a zip with a verifier that needs nothing of ours."""
    if target.json and out is None:
        raise Failure("--json and the zip cannot both go to standard output; give -o FILE", USAGE)

    async def work(client: Client) -> int:
        size = 0
        stream: IO[bytes] = sys.stdout.buffer if out is None else out.open("wb")
        try:
            async for chunk in client.stream("/v1/audit/export"):
                size += len(chunk)
                stream.write(chunk)
            stream.flush()
        finally:
            if out is not None:
                stream.close()
        if target.json:
            document({"output": str(out), "bytes": size})
        elif out:
            line(f"{size} bytes in {out}; unzip it, and run its verify.py")
        return exits.OK

    target.run(work)


audit = declare(
    typer.Typer(
        no_args_is_help=True, help="Decisions about where data may be: what was decided, and on what evidence."
    ),
    {"where": where, "replay": replay, "export": export},
)
