"""What is in force is put together once, and again whenever somebody has said something or a moment has come."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings
from sqlalchemy import event

from broker.compliance.lifecycle import APPROVERS, HOUR_US, standing, steady
from broker.compliance.proposals import in_force
from broker.compliance.tables import Proposal, Verdict
from broker.database import Database

TIME = st.integers(1, 12)
TEXT = "language: 1\npolicy: p\nversion: {}\nrules:\n  - {{id: where, effect: allow, on: [machine], when: {{country: [DE]}}}}\n"


def proposal(number: int, kind: str, at_us: int = 1, **body: Any) -> Proposal:
    subject = str(body.pop("of", "p"))
    return Proposal(
        id=f"proposal_{number:04}", kind=kind, subject=subject, body=body, sha256=str(number), reason="", proposer="ann",
        proposed_us=at_us,
    )  # fmt: skip


def policy(number: int, version: int, from_us: int | None = None) -> Proposal:
    return proposal(number, "policy", text=TEXT.format(version), nodes=["*"], version=version, from_us=from_us)


def word(number: int, of: Proposal, at_us: int, outcome: str = "approved") -> Verdict:
    return Verdict(
        id=f"verdict_{of.id}_{number}", proposal=of.id, outcome=outcome, principal=f"p{number}", decided_us=at_us
    )


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Proposal], list[Verdict]]:
    proposals: list[Proposal] = []
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(("policy", "waiver", "break_glass", "model", "withdrawal")))
        at_us, until_us = draw(TIME), draw(TIME)
        if kind == "policy":
            proposals.append(policy(number, draw(st.integers(1, 3)), draw(st.none() | TIME)))
        elif kind == "waiver":
            proposals.append(proposal(number, kind, at_us, rule="where", projects="*", until_us=until_us))
        elif kind == "break_glass":
            proposals.append(proposal(number, kind, at_us, projects="*", for_us=draw(st.integers(1, 4))))
        elif kind == "model":
            proposals.append(proposal(number, kind, at_us, of="tiny", projects="*", until_us=until_us))
        elif proposals:
            proposals.append(proposal(number, kind, at_us, of=draw(st.sampled_from(proposals)).id))
    outcomes = st.sampled_from(("approved", "approved", "approved", "rejected"))
    words = [
        word(number, each, draw(TIME), draw(outcomes))
        for each in proposals
        for number in range(draw(st.integers(0, APPROVERS[each.kind] + 1)))
    ]
    return proposals, words


@settings(max_examples=150, deadline=None)
@given(histories(), st.integers(0, 20))
def test_between_two_bounds_the_same_is_in_force_at_every_moment(
    history: tuple[list[Proposal], list[Verdict]], at_us: int
) -> None:
    from_us, until_us = steady(*history, at_us)
    assert from_us <= at_us and (until_us is None or at_us < until_us)
    here = standing(*history, at_us)
    for moment in range(from_us, 25 if until_us is None else until_us):
        assert standing(*history, moment) == here, moment


async def test_what_another_broker_approves_holds_with_the_next_question_and_is_read_once(
    database: Database, migrated_url: str
) -> None:
    """All proposals ever made, with their texts, were read at each lease, heartbeat and input."""
    read: list[str] = []
    event.listen(
        database.engine.sync_engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, *_: read.append(statement) if "broker_proposal.body" in statement else None,
    )

    async def names(at_us: int) -> list[tuple[str, int]]:
        async with database.transaction() as session:
            known = await in_force(session, at_us)
        return [(name, document.version) for name, (document, _) in known.policies.items()]

    assert await names(5) == []
    other = Database(migrated_url)
    first, second = policy(1, 1), policy(2, 2, from_us=HOUR_US)
    async with other.transaction() as session:
        session.add_all([first, second])
    assert await names(5) == []
    async with other.transaction() as session:
        session.add_all([word(1, first, 3), word(1, second, 4)])
    await other.close()
    assert await names(5) == [("p", 1)]
    count = len(read)
    assert [await names(at_us) for at_us in (6, 7, HOUR_US - 1)] == [[("p", 1)]] * 3
    assert len(read) == count, "nothing was said since, and it was read again"
    assert await names(HOUR_US) == [("p", 2)]
    assert await names(2) == [], "asked of a moment before it was approved"


async def test_what_a_transaction_says_and_takes_back_is_remembered_by_nobody(database: Database) -> None:
    mine = policy(1, 1)
    async with database.transaction() as session:
        assert not (await in_force(session, 5)).policies
    try:
        async with database.transaction() as session:
            session.add_all([mine, word(1, mine, 2)])
            await session.flush()
            assert (await in_force(session, 5)).policies
            raise TimeoutError
    except TimeoutError:
        pass
    async with database.transaction() as session:
        assert not (await in_force(session, 5)).policies
