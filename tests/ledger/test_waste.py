"""What of a rental's cost was waste: the split sums to the cost, and says why."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.database import Database
from ledger import audit
from ledger.accrual import accrue
from ledger.book import balances, entries
from ledger.waste import End, Timeline, shares, split, time_by_category
from tests.support.sealed_books import METER, NOW, keep_books

TIME = st.integers(0, 10**6)
LIVES = st.builds(
    Timeline,
    started_us=TIME,
    ended_us=TIME,
    ready_us=st.none() | TIME,
    gone_us=st.none() | TIME,
    busy_us=TIME,
    retried_us=TIME,
    committed_us=st.none() | TIME,
    end=st.sampled_from(["released", "preempted", "failed"]),
    nobody=st.booleans(),
)


@given(life=LIVES, total=st.integers(0, 10**12))
def test_categories_sum_to_the_cost_whatever_the_clocks_say(life: Timeline, total: int) -> None:
    times = time_by_category(life)
    assert sum(times.values()) == max(0, life.ended_us - life.started_us)
    assert min(times.values()) >= 0
    assert sum(shares(total, life).values()) == total


GOOD = Timeline(0, 100, 10, 90, 60, 5, 80, "released")


@pytest.mark.parametrize(
    ("life", "expected"),
    [
        (GOOD, {"useful": 60, "startup": 10, "idle": 15, "retried": 5, "zombie": 10}),
        # what it worked on since its last commit went with it
        (replace(GOOD, end="preempted", gone_us=None),
         {"useful": 60, "startup": 10, "retried": 5, "lost_preempted": 20, "idle": 5}),
        (replace(GOOD, ready_us=None, gone_us=None), {"startup": 100}),
        (replace(GOOD, ready_us=None, gone_us=None, end="failed"), {"lost_failed": 100}),
        # ultralytics/hub #1015: billed after disconnect
        (replace(GOOD, gone_us=40, busy_us=30, retried_us=0), {"useful": 30, "startup": 10, "zombie": 60}),
        (replace(GOOD, nobody=True), {"zombie": 100}),
        # counters of an agent that says that it worked longer than it lived
        (replace(GOOD, busy_us=500), {"useful": 80, "startup": 10, "zombie": 10}),
    ],
)  # fmt: skip
def test_each_part_of_a_life_has_its_category(life: Timeline, expected: dict[str, int]) -> None:
    assert {name: us for name, us in time_by_category(life).items() if us} == expected


async def test_waste_moves_between_expenses_once_and_is_revised_with_the_meter(books: Database) -> None:
    life = Timeline(NOW, NOW + 20_000_000, NOW + 5_000_000, None, 10_000_000, 0, None, end="released")
    async with books.transaction() as session:
        await keep_books(session)
        for _ in range(2):
            await split(session, METER, life, occurred_at_us=NOW, actor="broker", recorded_at_us=NOW)
        assert len(await entries(session, kind="usage.waste")) == 1
        before = {each.account: each.nano for each in await balances(session, rental="rental_1")}
        # the market mends its final meter: half of it
        until = NOW + 10_000_000
        await accrue(session, METER, until_us=until, final=True, actor="broker", recorded_at_us=until)
        shorter = replace(life, ended_us=until)
        await split(session, METER, shorter, occurred_at_us=NOW, actor="broker", recorded_at_us=NOW)
        after = {each.account: each.nano for each in await balances(session, rental="rental_1")}
        assert await audit.check(session) == []
    expenses = {name: nano for name, nano in before.items() if name.startswith("Expenses:")}
    assert expenses == {
        "Expenses:Compute:Spot:Sandbox": 10_000,
        "Expenses:Idle:Sandbox": 5_000,
        "Expenses:Startup:Sandbox": 5_000,
    }
    assert sum(nano for name, nano in after.items() if name.startswith("Expenses:")) == 10_000
    assert after["Expenses:Startup:Sandbox"] == 5_000
    assert after["Expenses:Idle:Sandbox"] == 0


def test_every_end_is_a_way_a_life_can_end() -> None:
    ends: tuple[End, ...] = ("released", "preempted", "failed")
    assert [sum(time_by_category(replace(GOOD, end=end)).values()) for end in ends] == [100, 100, 100]
