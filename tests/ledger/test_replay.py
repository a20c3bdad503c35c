"""Replay: the same file gives the same books, and what cannot be posted is named by its line."""

from __future__ import annotations

import json
from pathlib import Path

from broker.database import Database
from ledger import audit, seal
from ledger.book import entries
from ledger.replay import replay, schema
from tests.ledger.conftest import NewBooks
from tests.support.sealed_books import NOW, keep_books


def event(key: str, *, unit: str = "USD", kind: str = "prepaid.fund", nano: int = 5, **more: object) -> bytes:
    lines = [
        {"account": "Assets:Prepaid:Runpod", "nano": nano, "unit": unit},
        {"account": "Assets:Bank:Main", "nano": -nano, "unit": unit},
    ]
    return json.dumps(
        {"key": key, "kind": kind, "occurred_at_us": NOW, "actor": "me", "dims": {}, "lines": lines, **more}
    ).encode()


async def leaves(database: Database) -> list[bytes]:
    async with database.transaction() as session:
        return [leaf.payload for leaf in await seal.leaves(session, "books")]


async def test_replaying_sealed_leaves_gives_the_same_ledger_byte_for_byte(
    books: Database, new_books: NewBooks
) -> None:
    async with books.transaction() as session:
        await keep_books(session)
    told = await leaves(books)
    async with new_books() as other:
        result = await replay(other.transaction, told)
        again = await replay(other.transaction, told)
        assert (result.posted, again.posted, again.repeated) == (5, 0, 5)
        assert await leaves(other) == told
        async with other.transaction() as session, books.transaction() as before:
            assert await seal.head(session, "books") == await seal.head(before, "books")
            assert await entries(session) == await entries(before)
            assert await audit.check(session) == []


async def test_lines_that_cannot_be_posted_are_named_and_the_others_go_on(books: Database) -> None:
    lines = [
        event("ok-1"),
        b"{not json",
        event("usd", unit="XXQ"),
        event("odd", kind="prepaid.magic"),
        event("typo", acter="x"),
        event("float", nano=0),
        b"\xff\xfe",
        b"",
        event("ok-2", unit="EUR"),
        event("ok-1", nano=6),
    ]
    result = await replay(books.transaction, lines)
    assert result.posted == 2
    assert [(each.line, each.code) for each in result.refused] == [
        (2, "malformed_event"),
        (3, "unknown_unit"),
        (4, "malformed_event"),
        (5, "malformed_event"),
        (6, "malformed_event"),
        (7, "malformed_event"),
        (10, "key_reused"),
    ]


def test_the_schema_that_is_published_is_the_one_that_is_read() -> None:
    published = Path(__file__).resolve().parents[2] / "docs" / "ledger-event.schema.json"
    assert json.loads(published.read_text()) == schema(), "run `broker ledger schema > docs/ledger-event.schema.json`"
