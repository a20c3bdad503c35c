"""The sweep: finds every leak, ends no fleet because of one wrong list, touches nothing of others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from broker.database import Database
from markets import rentals
from markets.market import Rental
from markets.offer import Accelerator, Offer, OfferKey
from markets.rentals import OVER
from markets.sweep import (
    Adopt,
    Alarm,
    MarkEnded,
    Memory,
    Release,
    Seen,
    Sweep,
    SweepSettings,
    Verify,
    sweep,
)

SETTINGS = SweepSettings(owner="us", grace_s=120, max_releases=2)
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
KEY = OfferKey("m", None, None, "a", "cpu", 0, "spot")
SECOND = 1_000_000
NOW = 10_000 * SECOND


@dataclass
class Row:
    id: str
    state: str
    created_us: int = 0
    started_us: int | None = None


def rental(tag: str, state: str = "running", owner: str = "us") -> Rental:
    ended_at = NOON if state == "ended" else None
    return Rental(tag, KEY, state, Decimal(1), "USD", NOON, ended_at, NOON, facts={"owner": owner})  # type: ignore[arg-type]


def row(tag: str, state: str, created_us: int = 0) -> Row:
    return Row(tag, state, created_us, None if state in ("intended", "creating", "failed") else 1)


def once(known: list[Row], listed: list[Rental] | None, memory: Memory | None = None, now_us: int = NOW) -> Sweep:
    return sweep(known, listed, memory or Memory(), now_us=now_us, settings=SETTINGS)


def twice(known: list[Row], listed: list[Rental], *, apart_s: int = 200) -> Sweep:
    first = once(known, listed)
    return once(known, listed, first.memory, NOW + apart_s * SECOND)


def test_instance_leaked_between_create_and_record_is_adopted() -> None:
    for state in ("intended", "creating"):
        there = rental("a")
        assert once([row("a", state)], [there]).actions == (Adopt(there),)


def test_instance_leaked_and_over_before_anybody_looked_is_recorded() -> None:
    """EC2 confirms an end a minute after it was asked for, and a machine may end itself: its cost was booked by nobody."""
    ended, others = rental("a", "ended"), rental("b", "ended", owner="them")
    assert once([], [ended, others]).actions == (MarkEnded(ended),)
    partial = sweep([], [ended], Memory(), now_us=NOW, settings=SETTINGS, is_complete=False)
    assert partial.actions == ()


def test_a_confirmed_end_is_recorded_whatever_we_believed() -> None:
    for state in ("intended", "creating", "running", "releasing", "lost", "failed"):
        over = rental("a", "ended")
        assert once([row("a", state)], [over]).actions == (MarkEnded(over),)
    assert once([row("a", "ended")], [rental("a", "ended")]).actions == ()


def test_a_release_that_was_asked_for_is_asked_for_until_it_is_confirmed() -> None:
    there = rental("a", "releasing")
    assert once([row("a", "releasing")], [there]).actions == (Seen(there), Release("a", "asked"))


def test_a_machine_that_turns_up_after_we_gave_up_is_released() -> None:
    for state in ("lost", "failed"):
        there = rental("a")
        assert once([row("a", state)], [there]).actions == (Seen(there), Release("a", "turned_up"))


def test_an_intent_that_never_became_a_machine_fails_after_the_grace_and_a_question() -> None:
    known = [row("a", "creating")]
    assert once(known, []).actions == ()
    assert twice(known, []).actions == (Verify("a", "failed"),)
    young = [row("a", "creating", created_us=NOW)]
    assert twice(young, [], apart_s=60).actions == ()


def test_a_running_rental_that_vanished_is_lost_only_after_two_lists_and_a_question() -> None:
    assert once([row("a", "running")], []).actions == ()
    assert twice([row("a", "running")], []).actions == (Verify("a", "lost"),)


def test_a_rental_that_is_missing_once_and_back_again_is_not_doubted() -> None:
    first = once([row("a", "running")], [])
    second = once([row("a", "running")], [rental("a")], first.memory)
    assert once([row("a", "running")], [], second.memory).actions == ()


def test_an_unknown_machine_with_our_mark_is_released_after_the_grace() -> None:
    assert once([], [rental("a")]).actions == ()
    assert twice([], [rental("a")], apart_s=60).actions == ()
    assert twice([], [rental("a")]).actions == (Release("a", "unknown"),)


def test_a_machine_whose_row_has_ended_is_doubted_like_an_unknown_one() -> None:
    assert once([row("a", "ended")], [rental("a")]).actions == ()
    assert twice([row("a", "ended")], [rental("a")]).actions == (Release("a", "turned_up"),)


def test_a_broken_list_does_not_kill_the_fleet() -> None:
    """A list API that shows a thousand machines of which we know nothing: a few go, a person is called."""
    listed = [rental(f"t{number:04}") for number in range(1_000)]
    actions = twice([], listed).actions
    assert actions == (Release("t0000", "unknown"), Release("t0001", "unknown"), Alarm(1_000, 2))


def test_what_is_in_an_incomplete_list_counts_and_what_is_missing_or_strange_in_it_does_not() -> None:
    known = [row("a", "running"), row("b", "creating"), row("c", "running"), row("d", "running")]
    listed = [rental("a"), rental("b"), rental("c", "ended"), rental("unknown")]
    cut = sweep(known, listed, Memory(frozenset("d"), {"unknown": 0}), now_us=NOW, settings=SETTINGS, is_complete=False)
    assert cut.actions == (Seen(listed[0]), Adopt(listed[1]), MarkEnded(listed[2]))
    assert cut.memory == Memory(), "two complete lists in a row start anew"


def test_a_failed_list_breaks_the_row_of_two() -> None:
    first = once([row("a", "running")], [])
    assert first.memory.missing == {"a"}
    failed = once([row("a", "running")], None, first.memory)
    assert failed == Sweep((), Memory())
    assert once([row("a", "running")], [], failed.memory, NOW + 500 * SECOND).actions == ()


tags = st.sampled_from("abcdef")
states = st.sampled_from(["intended", "creating", "running", "releasing", "ended", "lost", "failed"])
rows = st.dictionaries(tags, st.tuples(states, st.integers(0, NOW)))
listings = st.tuples(st.sampled_from(["pending", "running", "releasing", "ended"]), st.sampled_from(["us", "them"]))
lists = st.dictionaries(tags, listings)
World = tuple[dict[str, tuple[str, int]], dict[str, tuple[str, str]]]


def step(world: World, memory: Memory, now_us: int) -> Sweep:
    known, listed = world
    return once(
        [row(tag, state, created) for tag, (state, created) in known.items()],
        [rental(tag, state, owner) for tag, (state, owner) in listed.items()],
        memory,
        now_us,
    )


@given(rows, lists, st.integers(0, 10**6))
def test_what_is_not_in_our_books_and_not_marked_as_ours_is_never_touched(
    known: dict[str, tuple[str, int]], listed: dict[str, tuple[str, str]], later_s: int
) -> None:
    """Invariant: every Release of a tag without a row is of a live machine with our mark, seen before, past the grace."""
    first = step((known, listed), Memory(), NOW)
    second = step((known, listed), first.memory, NOW + later_s * SECOND)
    assert not [each for each in first.actions if isinstance(each, Release) and each.why == "unknown"]
    for action in second.actions:
        if isinstance(action, Release) and action.why == "unknown":
            assert action.tag not in known
            assert listed[action.tag][1] == "us" and listed[action.tag][0] != "ended"
            assert later_s >= SETTINGS.grace_s
    unknown = [each for each in second.actions if isinstance(each, Release) and each.why == "unknown"]
    assert len(unknown) <= SETTINGS.max_releases


@given(rows, lists)
def test_one_list_alone_ends_nothing(known: dict[str, tuple[str, int]], listed: dict[str, tuple[str, str]]) -> None:
    """Invariant: the first list after a start concludes nothing from absence."""
    actions = step((known, listed), Memory(), NOW).actions
    assert not [each for each in actions if isinstance(each, Verify | Alarm)]
    for action in actions:
        if isinstance(action, Release):
            assert known[action.tag][0] in ("releasing", "lost", "failed")


@given(rows, lists, st.integers(0, 10**6))
def test_nothing_stays_open_unseen(
    known: dict[str, tuple[str, int]], listed: dict[str, tuple[str, str]], later_s: int
) -> None:
    """Invariant: after two lists past the grace, each open row is seen, ended, or asked about; but for an intent whose turn
    has not come: the market was not asked for it yet."""
    first = step((known, listed), Memory(), NOW)
    later = NOW + (200 + later_s) * SECOND
    actions = step((known, listed), first.memory, later).actions
    handled = {each.tag for each in actions if isinstance(each, Verify | Release)}
    handled |= {each.rental.tag for each in actions if isinstance(each, Adopt | Seen | MarkEnded)}
    assert {tag for tag, (state, _) in known.items() if state not in (*OVER, "intended")} <= handled


async def test_the_rows_of_the_database_are_what_the_sweep_needs(book: Database) -> None:
    offer = Offer(KEY, "process", Accelerator(), "USD", Decimal(1), NOON, "test", "00")
    async with book.transaction() as session:
        for tag in ("open", "over", "other"):
            await rentals.record_intent(
                session, rental_id=tag, offer=offer, project="p", model="m", precision="auto", purpose={}, now_us=0
            )
        for tag in ("over", "other"):
            await rentals.failed(session, tag, error="?", now_us=0)
    listed = [rental("over"), replace(rental("nobody"))]
    async with book.transaction() as session:
        known = await rentals.known_rentals(session, "m", [each.tag for each in listed])
        assert {each.id for each in known} == {"open", "over"}
        actions = sweep(known, listed, Memory(), now_us=NOW, settings=SETTINGS).actions
        assert actions == (Seen(listed[0]), Release("over", "turned_up"))
        await rentals.confirm(session, listed[0], now_us=NOW)
        assert [each.id for each in await rentals.open_rentals(session)] == ["open", "over"]
