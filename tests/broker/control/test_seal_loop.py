"""The seal loop signs nothing that does not go on from what was signed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlmodel import col
from structlog.testing import capture_logs

from broker.control.seal import WHOLE_S, Sealer, checkpoint_file
from ledger import outside, seal
from ledger.checkpoint import split_notes
from ledger.merkle import Frontier, leaf_hash
from ledger.seal import FIRST, chained
from ledger.tables import SealHead, SealLeaf


async def decide(town: Any, *decisions: bytes) -> None:
    async with town.database.transaction() as session:
        await seal.append_many(session, "decisions", decisions)


async def round_of(town: Any) -> list[Any]:
    """The errors of a round."""
    with capture_logs() as logs:
        await Sealer(town.services).step()
    return [each for each in logs if each["log_level"] == "error"]


def sizes(file: Path) -> list[str]:
    return [note.split("\n")[1] for note in split_notes(file.read_bytes())[0]]


async def rewrite(town: Any, payloads: list[bytes]) -> None:
    """What the owner of the database can do: drop the triggers, change a leaf and every hash after it, and the head."""
    frontier, prev = Frontier(), FIRST
    async with town.database.transaction() as session:
        if session.bind.dialect.name == "postgresql":
            for table in ("ledger_seal", "ledger_seal_head"):
                await session.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        else:
            query = text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name LIKE 'ledger_seal%'")
            for (name,) in (await session.execute(query)).all():
                await session.execute(text(f'DROP TRIGGER "{name}"'))
        for seq, payload in enumerate(payloads, start=1):
            frontier.add(leaf_hash(payload))
            values = {"payload": payload, "prev": prev, "hash": chained(prev, leaf_hash(payload))}
            of_leaf = (col(SealLeaf.stream) == "decisions", col(SealLeaf.seq) == seq)
            await session.execute(update(SealLeaf).where(*of_leaf).values(**values))
            prev = values["hash"]
        head = update(SealHead).where(col(SealHead.stream) == "decisions")
        await session.execute(head.values(seq=len(payloads), hash=prev, peaks=frontier.encode()))


async def test_a_rewritten_stream_is_not_signed_again(town: Any) -> None:
    """The loop signed whatever the database said, and so made a changed history good."""
    file = checkpoint_file(town.services.settings)
    await decide(town, b"{1}", b"{2}")
    assert await round_of(town) == []
    await decide(town, b"{3}")
    assert await round_of(town) == []
    before = file.read_bytes()
    assert sizes(file) == ["2", "3"]
    await rewrite(town, [b"{1}", b"{other}", b"{3}"])
    await decide(town, b"{4}")
    [error] = await round_of(town)
    assert (error["event"], error["count"]) == ("ledger.checkpoints_differ", 2)
    assert "broker/decisions of size 2" in error["problems"][0]
    assert file.read_bytes() == before
    await rewrite(town, [b"{1}", b"{2}", b"{3}", b"{4}"])
    assert await round_of(town) == []
    assert sizes(file) == ["2", "3", "4"]


async def test_a_note_that_a_crash_tore_is_written_whole_and_stops_nothing(town: Any) -> None:
    file = checkpoint_file(town.services.settings)
    await decide(town, b"{1}")
    await round_of(town)
    whole = file.read_bytes()
    for kept in range(0, len(whole), 7):  # also inside the dash of the signature
        file.write_bytes(whole[:kept])
        await decide(town, f"{{{kept}}}".encode())
        assert await round_of(town) == []
        assert file.read_bytes().startswith(whole)
    file.write_bytes(whole + b"something else")
    await decide(town, b"{2}")
    [error] = await round_of(town)
    assert "no note" in error["problems"][0]


async def test_signing_hashes_what_is_new_and_not_the_whole_history_each_time(
    town: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each note cost a hash of every leaf there ever was; and a history that is rewritten is found all the same."""
    hashed: list[int] = []
    whole = outside._Walk.on
    monkeypatch.setattr(outside._Walk, "on", lambda walk, page: (hashed.append(len(page)), whole(walk, page))[1])
    sealer = Sealer(town.services)
    await decide(town, *(b"{%d}" % each for each in range(50)))
    await sealer.step()
    for more in (b"{a}", b"{b}", b"{c}"):
        await decide(town, more)
        await sealer.step()
    assert hashed == [50, 1, 1, 1]
    await rewrite(town, [*(b"{%d}" % each for each in range(49)), b"{another}", b"{a}", b"{b}", b"{c}", b"{d}"])
    before = sizes(checkpoint_file(town.services.settings))
    with capture_logs() as logs:
        await sealer.step()
    assert [each["event"] for each in logs if each["log_level"] == "error"] == ["ledger.checkpoints_differ"]
    assert sizes(checkpoint_file(town.services.settings)) == before, "nothing is signed"


async def test_a_leaf_changed_under_its_head_is_found_when_the_whole_is_hashed_again(town: Any) -> None:
    now = [0.0]
    sealer = Sealer(town.services, clock=lambda: now[0])
    await decide(town, b"{1}", b"{2}")
    await sealer.step()
    await rewrite(town, [b"{x}", b"{2}"])
    now[0] = WHOLE_S
    await decide(town, b"{3}")
    with capture_logs() as logs:
        await sealer.step()
    assert "ledger.checkpoints_differ" in [each["event"] for each in logs]
