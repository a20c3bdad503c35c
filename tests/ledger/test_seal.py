"""The sealed streams: exact bytes, one chain each, append-only on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from broker.database import Database
from ledger import audit, seal
from ledger.book import post
from ledger.errors import LedgerError
from ledger.event import Dims, Event, Line
from ledger.merkle import leaf_hash, root_of
from tests.support.databases import DIALECT

NOW = 1_795_305_600_000_000


def usage(key: str) -> Event:
    return Event(
        key=key,
        kind="saving.reuse",
        occurred_at_us=NOW,
        actor="broker",
        dims=Dims(project="demo"),
        lines=(Line(account="Memo:Saved:Demo", nano=5), Line(account="Memo:Contra", nano=-5)),
    )


async def test_leaves_are_the_exact_bytes_and_each_names_the_one_before(books: Database) -> None:
    """Formance hashed re-serialised JSON and had to repair its chain three times."""
    written = [b'{"b":1, "a":2}', b"\x00\xff", b""]
    async with books.transaction() as session:
        sealed = [await seal.append(session, "decisions", each) for each in written]
    async with books.transaction() as session:
        kept = await seal.leaves(session, "decisions")
        head = await seal.head(session, "decisions")
    assert [leaf.payload for leaf in kept] == written
    assert [each.seq for each in sealed] == [1, 2, 3]
    assert [each.prev for each in sealed] == [seal.FIRST, sealed[0].hash, sealed[1].hash]
    assert sealed[1].hash == seal.chained(sealed[0].hash, leaf_hash(written[1]))
    assert (head.seq, head.hash, head.root) == (3, sealed[2].hash, root_of(written).hex())


async def test_every_entry_of_the_books_is_a_leaf_and_streams_do_not_mix(books: Database) -> None:
    async with books.transaction() as session:
        await seal.append(session, "decisions", b"decided")
        for key in ("a", "b", "a"):
            await post(session, usage(key), recorded_at_us=NOW)
    async with books.transaction() as session:
        leaves = await seal.leaves(session, "books")
        assert await audit.check(session) == []
    assert [leaf.seq for leaf in leaves] == [1, 2]
    assert b'"key":"b"' in leaves[1].payload


async def test_what_is_rolled_back_was_never_sealed(books: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with books.transaction() as session:
            await seal.append(session, "decisions", b"one")
            _ = 1 / 0
    async with books.transaction() as session:
        assert (await seal.append(session, "decisions", b"two")).seq == 1


async def test_an_unknown_stream_is_refused(books: Database) -> None:
    with pytest.raises(LedgerError, match="gossip"):
        async with books.transaction() as session:
            await seal.append(session, "gossip", b"x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_seal SET payload = prev WHERE seq = 1"
        if DIALECT == "sqlite"
        else "UPDATE ledger_seal SET payload = ''",
        "DELETE FROM ledger_seal",
        "INSERT INTO ledger_seal SELECT stream, 9, payload, prev, hash FROM ledger_seal",
        "INSERT INTO ledger_seal SELECT stream, 2, payload, prev, hash FROM ledger_seal",
        "UPDATE ledger_seal_head SET seq = 0 WHERE stream = 'decisions'",
        "UPDATE ledger_seal_head SET seq = 7 WHERE stream = 'decisions'",
        "DELETE FROM ledger_seal_head",
        *(() if DIALECT == "sqlite" else ("TRUNCATE ledger_seal", "TRUNCATE ledger_seal_head")),
    ],
)
async def test_the_database_itself_refuses_to_change_what_is_sealed(books: Database, statement: str) -> None:
    async with books.transaction() as session:
        await seal.append(session, "decisions", b"one")
    with pytest.raises(IntegrityError, match="ledger:"):
        async with books.transaction() as session:
            await session.execute(text(statement))
