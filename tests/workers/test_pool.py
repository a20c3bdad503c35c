"""The pool: which line may go to the engine, and what becomes of it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.agent.answers import Fault, Finished, Usage
from workers.agent.leases import HeldLease
from workers.agent.lines import Line
from workers.agent.pool import Pool

NOW = 100.0


def line(idx: int) -> Line:
    return Line(idx=idx, custom_id=f"c-{idx}", body=b"{}", max_tokens=8)


def lease(count: int, *, first: int = 0, suspects: dict[int, int] | None = None, ttl_s: float = 60) -> HeldLease:
    held = HeldLease(
        shard_id=f"shard_{first}",
        epoch=1,
        nonce="n",
        ttl_s=ttl_s,
        endpoint="/v1/chat/completions",
        part_put="",
        renewed_at=NOW,
    )
    held.admit([line(first + n) for n in range(count)], suspects or {}, alone_from=2)
    return held


def pool_of(*leases: HeldLease, max_attempts: int = 3) -> Pool:
    pool = Pool(max_attempts)
    for held in leases:
        pool.add(held, NOW)
    return pool


def start_all(pool: Pool, now: float = NOW) -> list[tuple[HeldLease, Line]]:
    started = []
    while (chosen := pool.start(now)) is not None:
        started.append(chosen)
    return started


def numbers(chosen: list[tuple[HeldLease, Line]]) -> list[int]:
    return [line.idx for _, line in chosen]


def done(line: Line) -> Finished:
    return Finished(line.idx, "completed", b"{}\n", Usage(), line.attempts + 1)


def test_nothing_new_is_started_past_four_fifths_of_the_ttl_without_a_renewal() -> None:
    pool = pool_of(lease(3, ttl_s=10))
    assert pool.start(NOW + 7.9) is not None
    assert pool.start(NOW + 8.0) is None
    pool.leases[0].renewed_at = NOW + 8
    assert pool.start(NOW + 8.0) is not None


def test_the_next_shard_fills_the_engine_before_the_first_is_done() -> None:
    pool = pool_of(lease(2), lease(2, first=10))
    assert numbers(start_all(pool)) == [0, 1, 10, 11]


@given(
    limits=st.lists(st.one_of(st.none(), st.integers(1, 4)), min_size=1, max_size=4),
    order=st.lists(st.integers(0, 30), max_size=60),
)
def test_while_a_line_of_a_lease_with_a_limit_is_in_the_engine_no_more_are(
    limits: list[int | None], order: list[int]
) -> None:
    """Whoever's they are: a p95 is not kept beside a flood of another batch. And nothing waits for ever."""
    leases = [lease(5, first=10 * number) for number in range(len(limits))]
    for held, limit in zip(leases, limits, strict=True):
        held.concurrency = limit
    pool = pool_of(*leases)
    running: list[tuple[HeldLease, Line]] = []
    finished: list[int] = []
    for which in [*order, *[0] * 5 * len(limits)]:
        running += start_all(pool)
        kept = [held.concurrency for held, _ in running if held.concurrency is not None]
        assert len(running) <= min(kept, default=len(running))
        if running:
            held, at = running.pop(which % len(running))
            pool.finish(held, at, done(at), NOW)
            finished.append(at.idx)
    assert sorted(finished) == [10 * number + n for number in range(len(limits)) for n in range(5)]


def test_suspects_of_a_crash_wait_until_their_shard_has_nothing_else_and_then_run_alone() -> None:
    pool = pool_of(lease(4))
    first = [pool.start(NOW), pool.start(NOW)]
    pool.crash([chosen for chosen in first if chosen], "died", NOW)
    fresh = start_all(pool)
    assert numbers(fresh) == [2, 3], "the innocent go first, and nothing beside them"
    for held, at in fresh:
        pool.finish(held, at, done(at), NOW)
    alone = start_all(pool)
    assert numbers(alone) == [0], "one of two suspects, the engine to itself"
    pool.finish(*alone[0], done(alone[0][1]), NOW)
    assert numbers(start_all(pool)) == [1]


def test_sixty_four_suspects_need_two_more_crashes_to_convict_one() -> None:
    pool = pool_of(lease(64))
    crashes, guilty = 0, 37
    finished: set[int] = set()
    while pool.waiting:
        started = start_all(pool)
        if guilty in numbers(started):
            pool.crash(started, "died", NOW)
            crashes += 1
        else:
            for held, at in started:
                pool.finish(held, at, done(at), NOW)
                finished.add(at.idx)
    assert finished == set(range(64)) - {guilty}
    assert crashes == 3
    [letter] = [at for at in pool.leases[0].finished if at.status == "failed"]
    assert (letter.idx, letter.attempts) == (guilty, 3)


def test_a_line_is_never_given_up_for_a_crash_in_company() -> None:
    pool = pool_of(lease(2, suspects={0: 2}), max_attempts=3)
    pool.leases[0].suspects.clear()
    pool.leases[0].fresh.appendleft(line(0))
    pool.leases[0].fresh[0].attempts = 2
    pool.crash(start_all(pool), "died", NOW)
    assert pool.leases[0].finished == [], "either of the two may have done it"


def test_a_lease_that_is_lost_starts_nothing_and_keeps_what_is_finished() -> None:
    pool = pool_of(lease(3))
    held, first = pool.start(NOW) or (None, None)
    assert held is not None and first is not None
    pool.finish(held, first, done(first), NOW)
    pool.abandon(held, is_void=False)
    assert pool.start(NOW) is None
    assert [at.idx for at in held.finished] == [0]
    assert held.is_worked_off


def test_lines_that_others_have_done_are_not_started() -> None:
    pool = pool_of(lease(4, suspects={3: 1}))
    pool.leases[0].forget({1, 3})
    assert numbers(start_all(pool)) == [0, 2]


def test_a_successor_is_told_who_is_suspect() -> None:
    pool = pool_of(lease(3, suspects={2: 1}))
    started = [pool.start(NOW)]
    pool.crash([chosen for chosen in started if chosen], "died", NOW)
    assert pool.leases[0].blame() == {0: 1, 2: 1}


class LinesAreKept(RuleBasedStateMachine):
    """Whatever happens, each line is in exactly one place: waiting, in the engine, or finished.

    And while suspects are run in isolation, nothing else is in the engine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(3)
        self.flying: list[tuple[HeldLease, Line]] = []
        self.next_first = 0
        self.given = 0

    @rule(count=st.integers(1, 20), suspects=st.dictionaries(st.integers(0, 19), st.integers(1, 4), max_size=4))
    def take(self, count: int, suspects: dict[int, int]) -> None:
        if len(self.pool.leases) < 3:
            first = self.next_first
            self.next_first += 100
            self.given += count
            blamed = {first + idx: attempts for idx, attempts in suspects.items()}
            self.pool.add(lease(count, first=first, suspects=blamed), NOW)

    @rule()
    def start(self) -> None:
        chosen = self.pool.start(NOW)
        if chosen is not None:
            self.flying.append(chosen)

    def pick(self, data: Any) -> tuple[HeldLease, Line]:
        return self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def finish(self, data: Any) -> None:
        held, at = self.pick(data)
        self.pool.finish(held, at, done(at), NOW)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def fault(self, data: Any) -> None:
        self.pool.charge(*self.pick(data), Fault("engine_error", "500"), NOW)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def busy(self, data: Any) -> None:
        self.pool.put_back(*self.pick(data))

    @rule()
    def crash(self) -> None:
        self.pool.crash(self.flying, "died", NOW)
        self.flying = []

    @invariant()
    def every_line_is_in_one_place(self) -> None:
        finished = [at.idx for held in self.pool.leases for at in held.finished]
        assert len(finished) == len(set(finished))
        assert self.pool.in_flight == len(self.flying)
        assert self.pool.waiting + self.pool.in_flight + len(finished) == self.given

    @invariant()
    def suspects_run_apart(self) -> None:
        suspects = [at for _, at in self.flying if at.attempts]
        assert not suspects or len(suspects) == len(self.flying)

    def teardown(self) -> None:
        """From any state the work can be brought to an end: nothing is stuck."""
        for _ in range(20_000):
            if not self.pool.waiting and not self.flying:
                break
            if (chosen := self.pool.start(NOW)) is not None:
                self.flying.append(chosen)
            else:
                assert self.flying, "lines wait, nothing is in flight, and none may start"
                held, at = self.flying.pop(0)
                self.pool.finish(held, at, done(at), NOW)
        assert sum(len(held.finished) for held in self.pool.leases) == self.given


TestLinesAreKept = LinesAreKept.TestCase
TestLinesAreKept.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
