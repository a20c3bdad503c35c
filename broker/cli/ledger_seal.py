"""`ledger key`, `seal`, `verify`, `replay`, `post`, `schema`: the books as evidence.

`verify`, `replay` and `schema` ask no broker: they need the files alone.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.exits import ERROR, USAGE, Failure
from broker.cli.options import Json, Target
from broker.cli.output import document, line, table

if TYPE_CHECKING:
    from broker.database import Database
    from ledger.checkpoint import PublicKey
    from ledger.replay import Replayed
    from ledger.verify import Verdict

AT_ONCE = 1000
Export = Annotated[Path, typer.Argument(help="The folder or zip of an export.", metavar="EXPORT")]
Events = Annotated[Path, typer.Argument(help="Events as JSON lines (`ledger schema`).", metavar="EVENTS.jsonl")]


def key(target: Target) -> None:
    """The public key of the books' checkpoints, as `ledger verify` wants it. Keep a copy away from the broker."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/ledger/key")
        if target.json:
            document(found)
        else:
            line(found["public_key"])
        return exits.OK

    target.run(work)


def seal(
    target: Target,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the zip here.")],
) -> None:
    """Sign the books as they are now and save them with all checkpoints, for `ledger verify`."""

    async def work(client: Client) -> int:
        with out.open("wb") as stream:
            async for chunk in client.stream("/v1/ledger/sealed.zip"):
                stream.write(chunk)
        if target.json:
            document({"output": str(out)})
        else:
            line(f"the sealed books are in {out}; `broker ledger verify {out} --public-key FILE` checks them")
        return exits.OK

    target.run(work)


def verify(
    export: Export,
    *,
    public_key: Annotated[Path, typer.Option(help="The public key (`ledger key`), kept elsewhere.")],
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            help="A file of signed checkpoints that was kept outside the database; each must hold.",
            show_default=False,
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check an export with the public key, and with checkpoints kept outside. Exit 1 when anything of it was changed."""
    from ledger.verify import verify as look  # noqa: PLC0415 - cryptography takes 100 ms to come

    keys = _keys(public_key)
    with _unpacked(export) as folder:
        verdict = look(folder, keys, checkpoints)
    _print_verdict(verdict, as_json=as_json)
    raise typer.Exit(ERROR if verdict.problems else exits.OK)


def replay(
    events: Events,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the entries, as sealed, to this file.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Build books from a file of events and check them: entries, balances, root. Exit 1 when a line was refused or the books
    do not hold."""
    if not events.is_file():
        raise Failure(
            f"{events} is no file; give events as JSON lines (`broker ledger schema` describes a line)", USAGE
        )
    told = asyncio.run(_replayed(events, out))
    if as_json:
        document(told)
    else:
        table(("account", "unit", "balance"), [(b["account"], b["unit"], b["amount"]) for b in told["balances"]])
        line(f"{told['posted']} entries posted, {told['repeated']} repeats, root {told['root']}")
        for each in told["refused"]:
            line(f"line {each['line']}: {each['code']}: {each['message']}", sys.stderr)
        for finding in told["findings"]:
            line(f"finding: {finding}", sys.stderr)
    raise typer.Exit(ERROR if told["refused"] or told["is_broken"] else exits.OK)


def post(events: Events, target: Target) -> None:
    """Post events that no loop knows of: top-ups, deposits, refunds, exchanges, corrections. All of them or none."""
    try:
        found = [json.loads(row) for row in events.read_text(encoding="utf-8").splitlines() if row.strip()]
    except (OSError, ValueError) as problem:
        raise Failure(f"{events} cannot be read as JSON lines: {problem}", USAGE) from problem
    if len(found) > AT_ONCE:
        raise Failure(f"{events} has {len(found)} events; at most {AT_ONCE} are posted at once", USAGE)

    async def work(client: Client) -> int:
        answer = await client.post("/v1/ledger/events", {"events": found}, again=True)
        if target.json:
            document(answer)
        else:
            table(("seq", "key", "outcome"), [(str(a["seq"]), a["key"], a["outcome"]) for a in answer["data"]])
        return exits.OK

    target.run(work)


def close(
    period: Annotated[str, typer.Argument(help="The month, UTC.", metavar="YYYY-MM")],
    target: Target,
) -> None:
    """Close a month that has ended; refused while money lies in suspense."""

    async def work(client: Client) -> int:
        answer = await client.post(f"/v1/ledger/periods/{period}/close", {})
        if target.json:
            document(answer)
        else:
            line(
                f"{period} is closed (entry {answer['seq']}); what belongs to it is booked in the next month from now on"
            )
        return exits.OK

    target.run(work)


def schema() -> None:
    """The JSON Schema of an event: what a line of EVENTS.jsonl is."""
    from ledger.replay import schema as of_events  # noqa: PLC0415 - see above

    document(of_events())


def _keys(file: Path) -> list[PublicKey]:
    from ledger.checkpoint import BadKey, read_keys  # noqa: PLC0415 - see above

    try:
        return read_keys(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, BadKey) as problem:
        raise Failure(f"--public-key {file}: {problem}", USAGE) from problem


@contextmanager
def _unpacked(export: Path) -> Iterator[Path]:
    """The export's folder. A zip is unpacked; what it says beyond its files is held against them."""
    if export.is_dir():
        yield export
        return
    with tempfile.TemporaryDirectory(prefix="broker-verify-") as name:
        try:
            with zipfile.ZipFile(export) as packed:
                packed.extractall(name)
        except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError) as problem:
            raise Failure(f"{export} cannot be unpacked: {problem}; it was changed or is no export", ERROR) from problem
        yield Path(name)


def _print_verdict(verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        document(
            {
                "ok": not verdict.problems,
                "leaves": verdict.leaves,
                "postings": verdict.postings,
                "checkpoints": verdict.checkpoints,
                "outside": verdict.outside,
                "files": verdict.files,
                "problems": [{"where": each.where, "message": each.message} for each in verdict.problems],
            }
        )
        return
    leaves = ", ".join(f"{count} of {stream}" for stream, count in verdict.leaves.items())
    line(f"{leaves}; {verdict.postings} postings, {verdict.checkpoints} checkpoints, {verdict.files} files")
    if verdict.outside:
        line(f"{verdict.outside} checkpoints that were kept outside were held against them")
    for each in verdict.problems:
        line(f"{each.where}: {each.message}")
    if not verdict.problems:
        line("everything is as it was signed")


async def _replayed(events: Path, out: Path | None) -> dict[str, Any]:
    from broker.cli import logs  # noqa: PLC0415 - see above
    from ledger import audit, seal  # noqa: PLC0415
    from ledger.book import balances  # noqa: PLC0415
    from ledger.money import from_nano  # noqa: PLC0415
    from ledger.replay import replay as replay_lines  # noqa: PLC0415

    logs.configure("warning")
    async with _fresh_books() as database:
        with events.open("rb") as lines:
            result: Replayed = await replay_lines(database.transaction, lines)
        async with database.transaction() as session:
            findings = await audit.check(session)
            sums = await balances(session)
            head = await seal.head(session, "books")
        if out is not None:
            await _save(database, out)
    return {
        "posted": result.posted,
        "repeated": result.repeated,
        "refused": [{"line": e.line, "code": e.code, "message": e.message} for e in result.refused],
        "balances": [{"account": b.account, "unit": b.unit, "amount": f"{from_nano(b.nano):f}"} for b in sums],
        "findings": [f"{each.severity}: {each.code} {each.subject}: {each.message}" for each in findings],
        "is_broken": any(each.severity == "error" for each in findings),
        "entries": head.seq,
        "root": head.root,
    }


@asynccontextmanager
async def _fresh_books() -> AsyncIterator[Database]:
    from broker.database import Database, sqlite_url  # noqa: PLC0415 - see above
    from broker.migrate import upgrade  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="broker-replay-") as name:
        database = Database(sqlite_url(Path(name) / "books.db"))
        await upgrade(database.url)
        try:
            yield database
        finally:
            await database.close()


async def _save(database: Database, out: Path) -> None:
    from ledger import seal  # noqa: PLC0415 - see above

    after = 0
    with out.open("wb") as file:
        while True:
            async with database.transaction() as session:
                page = await seal.leaves(session, "books", after_seq=after)
            if not page:
                return
            file.writelines(leaf.payload + b"\n" for leaf in page)
            after = page[-1].seq


COMMANDS: dict[str, Callable[..., None]] = {
    "key": key,
    "seal": seal,
    "verify": verify,
    "replay": replay,
    "post": post,
    "close": close,
    "schema": schema,
}
