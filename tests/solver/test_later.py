"""What waits: a cheaper hour, or spot that is sold out; never at the deadline's risk, and the plan passes the checker."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.check import check
from solver.later import asked, replanned
from solver.plan import solve
from solver.types import HOUR_US, Plan, Record, Snapshot

DAY_US = 24 * HOUR_US
USD = 1_000_000_000


def with_record(snapshot: Snapshot, key: str, spans: list[tuple[int, int, int | None]]) -> Snapshot:
    record = Record(offer_key=key, spans=tuple(spans))
    return msgspec.structs.replace(snapshot, records=(*snapshot.records, record))


def nightly(now_us: int, cheap_in_h: int, days: int = 14) -> list[tuple[int, int, int | None]]:
    """Half the price for four hours of each day, which come again in so many hours."""
    spans = []
    for day in range(days, 0, -1):
        begin = now_us - day * DAY_US
        cheap = begin + cheap_in_h * HOUR_US
        spans += [(begin, cheap, 2 * USD), (cheap, cheap + 4 * HOUR_US, USD)]
        spans.append((cheap + 4 * HOUR_US, begin + DAY_US, 2 * USD))
    return spans


def flapping(now_us: int, hours: float, every: float, price: int, days: int = 7) -> list[tuple[int, int, int | None]]:
    """There for `hours` of `every` hours, and gone for the last while."""
    spans: list[tuple[int, int, int | None]] = []
    at = now_us - days * DAY_US
    while at < now_us:
        up, end = at + round(hours * HOUR_US), min(now_us, at + round(every * HOUR_US))
        spans += [(at, min(up, end), price), (min(up, end), end, None)]
        at = end
    return [each for each in spans if each[0] < each[1]]


def test_a_batch_with_slack_begins_at_the_cheap_hour_and_one_without_at_once(town: Any) -> None:
    offer = town.offer("x/1", 2.0)
    for within_h, begins in ((24, 6), (7, 0)):
        snapshot = town.snapshot([town.work("w", 2, within_h=within_h)], [offer, town.offer("y/1", 9.0)])
        snapshot = with_record(snapshot, "x/1", nightly(snapshot.now_us, 6))
        plan = solve(snapshot)
        assert check(snapshot, plan) == []
        assert plan.starts[0].from_us == snapshot.now_us + begins * HOUR_US
        assert [each.kind for each in plan.later] == (["hour"] if begins else [])


def test_without_a_record_everything_begins_now(town: Any) -> None:
    plan = solve(town.snapshot([town.work("w", 2, within_h=24)], [town.offer("x/1", 2.0)]))
    assert plan.later == ()


def sold_out_spot(town: Any, within_h: float, up_h: float = 3.0) -> Snapshot:
    spot = town.offer("x/spot", 0.5, pricing="spot", capacity=0, hazard=0.1)
    snapshot = town.snapshot(
        [town.work("w", 4, within_h=within_h)], [town.offer("x/on-demand", 2.0), spot, town.offer("y/dear", 9.0)]
    )
    return with_record(snapshot, "x/spot", flapping(snapshot.now_us, up_h, 4.0, USD // 2))


def test_on_demand_is_not_rented_at_once_where_spot_is_gone_for_a_moment_and_time_is_left(town: Any) -> None:
    snapshot = sold_out_spot(town, 24)
    assert asked(snapshot, solve(msgspec.structs.replace(snapshot, records=()))) == ("x/on-demand", "x/spot")
    plan = solve(snapshot)
    [later] = plan.later
    assert (later.kind, later.awaits, later.offer_key) == ("spot", "x/spot", "x/on-demand")
    # twice the four hours and one more must still fit
    assert snapshot.now_us + 14 * HOUR_US < later.begin_us <= snapshot.now_us + 15 * HOUR_US
    assert 0.3 < later.saving_ppm / 1e6 < 0.75
    assert check(snapshot, plan) == []


def test_spot_that_was_never_there_or_comes_too_late_is_not_waited_for(town: Any) -> None:
    for snapshot in (sold_out_spot(town, 24, up_h=0.0), sold_out_spot(town, 9.5)):
        plan = solve(snapshot)
        assert plan.later == ()
        assert plan.starts[0].from_us == snapshot.now_us


def test_what_waits_begins_when_its_time_is_up_whatever_the_record_says(town: Any) -> None:
    snapshot = sold_out_spot(town, 24)
    begin_us = solve(snapshot).later[0].begin_us
    then = msgspec.structs.replace(snapshot, now_us=begin_us)
    assert [start.from_us for start in solve(then).starts] == [begin_us]


def test_spot_without_a_machine_that_is_not_taken_away_beside_it_never_waits_for_an_hour(town: Any) -> None:
    """Who waits for spot alone may find none at the end."""
    spot = town.offer("x/spot", 2.0, pricing="spot", hazard=0.0)
    snapshot = town.snapshot([town.work("w", 2, within_h=24)], [spot])
    snapshot = with_record(snapshot, "x/spot", nightly(snapshot.now_us, 6))
    assert solve(snapshot).later == ()
    safe = msgspec.structs.replace(snapshot, offers=(town.offer("x/on-demand", 9.0), *snapshot.offers))
    assert [each.kind for each in solve(safe).later] == ["hour"]


def on_demand_beside(town: Any, *others: Any, works: int = 1) -> Plan:
    """A work of each project, and so many fast machines, which are cheaper in six hours."""
    fast = [town.offer(f"x/{number}", 2.0) for number in range(works)]
    queue = [town.work(f"w{number}", 2, within_h=24, project=f"p{number}") for number in range(works)]
    snapshot = town.snapshot(queue, [*fast, *others], speeds={("m", "gpu"): 1000.0, ("m", "slow"): 100.0})
    for each in fast:
        snapshot = with_record(snapshot, each.key, nightly(snapshot.now_us, 6))
    plan = solve(snapshot)
    assert check(snapshot, plan) == []
    return plan


def test_the_only_machine_that_is_fast_enough_never_waits_for_an_hour_until_others_have_rented_it(town: Any) -> None:
    """Sold out at the cheap hour, everything else would have been late."""
    assert on_demand_beside(town).later == ()
    slow = town.offer("y/slow", 1.9, accelerator="slow")
    plan = on_demand_beside(town, slow)
    assert plan.later == ()
    assert [each.kind for each in on_demand_beside(town, town.offer("y/as-fast", 9.0)).later] == ["hour"]


def test_two_that_wait_never_count_on_the_same_machine(town: Any) -> None:
    for machines, waiting in ((1, 1), (2, 2)):
        plan = on_demand_beside(town, town.offer("y/dear", 9.0, capacity=machines), works=2)
        assert len(plan.later) == waiting


def test_a_decision_to_wait_holds_for_a_while(town: Any) -> None:
    snapshot = sold_out_spot(town, 24)
    plan = solve(snapshot)
    next_one = msgspec.structs.replace(snapshot, now_us=snapshot.now_us + 5_000_000, waits=plan.later, records=())
    assert solve(next_one).later == plan.later
    much_later = msgspec.structs.replace(next_one, now_us=snapshot.now_us + 700_000_000)
    assert solve(much_later).later == ()


def test_no_records_are_read_of_every_pool_that_is_sold_out_nor_of_what_waits_already(town: Any) -> None:
    """Two weeks of changes of each were read with every plan, for a policy that looks at two pools."""
    spot = [town.offer(f"x/spot{number}", 0.5 + number / 100, pricing="spot", capacity=0) for number in range(30)]
    offers = [town.offer("x/on-demand", 2.0), town.offer("y/dear", 9.0), *spot]
    snapshot = town.snapshot([town.work("w", 4, within_h=24)], offers)
    keys = asked(snapshot, solve(snapshot))
    assert keys == ("x/on-demand", *(f"x/spot{number}" for number in range(6)))
    for key in keys[1:]:
        snapshot = with_record(snapshot, key, flapping(snapshot.now_us, 3.0, 4.0, USD // 2))
    waits = solve(snapshot).later
    assert [each.awaits for each in waits] == ["x/spot0"]
    bare = msgspec.structs.replace(snapshot, now_us=snapshot.now_us + 5_000_000, records=())
    held = msgspec.structs.replace(bare, waits=waits)
    assert asked(held, solve(bare)) == ()
    assert replanned(held, solve(bare)).later == waits


def test_a_plan_that_moves_a_start_without_saying_so_is_refused(town: Any) -> None:
    snapshot = sold_out_spot(town, 24)
    plan = solve(snapshot)
    wrong = msgspec.structs.replace(plan.later[0], begin_us=plan.later[0].begin_us + 1)
    assert "later" in {each.rule for each in check(snapshot, msgspec.structs.replace(plan, later=(wrong,)))}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_in_any_queue_what_waits_is_still_in_time_and_costs_what_it_did(towns: Any, seed: int) -> None:
    snapshot, random = towns().random(seed), Random(seed)
    plan = solve(snapshot)
    for key in asked(snapshot, plan):
        spans = random.choice([nightly(snapshot.now_us, 3), flapping(snapshot.now_us, 2, 3, USD // 10)])
        snapshot = with_record(snapshot, key, spans)
    moved: Plan = replanned(snapshot, plan)
    assert moved.cost_nano == plan.cost_nano
    assert check(snapshot, moved) == []


def test_a_large_queue_waits_for_the_cheap_hour_too_and_what_has_no_time_begins_at_once(town: Any) -> None:
    """Sixty batches by sixty offers are planned by classes."""
    offers = [town.offer(f"x/{number:02}", 2.0 + number / 100) for number in range(60)]
    spare = town.offer("y/spare", 9.0, capacity=200)
    queue = [town.work(f"w{n:02}", 0.1, within_h=24 if n % 2 else 6, project=f"p{n % 2}") for n in range(60)]
    snapshot = town.snapshot(queue, [*offers, spare])
    snapshot = msgspec.structs.replace(snapshot, later_starts=False)
    at_once = solve(snapshot)
    keys = asked(snapshot, at_once)
    assert keys
    for key in keys:
        snapshot = with_record(snapshot, key, nightly(snapshot.now_us, 6))
    plan = replanned(snapshot, at_once)
    assert check(snapshot, plan) == []
    assert plan.later
    assert {each.kind for each in plan.later} == {"hour"}
    assert {each.project for each in plan.later} == {"p1"}
    moved = {(each.offer_key, each.project) for each in plan.later}
    for start in plan.starts:
        hours = 6 if (start.offer_key, start.project) in moved else 0
        assert start.from_us == snapshot.now_us + hours * HOUR_US
    assert plan.cost_nano == at_once.cost_nano  # at the prices of now


def test_nobody_follows_on_a_machine_whose_own_start_is_postponed(town: Any) -> None:
    """A waited for y/cheap, on which B would begin now, while B itself was put off to wait for spot: A waited for nothing."""
    offers = [
        town.offer("y/cheap", 2.0, start_s=600, capacity=1),
        town.offer("x/dear", 5.0, start_s=600, capacity=3),
        town.offer("z/spare", 9.0, capacity=3),
        town.offer("s/spot", 0.5, pricing="spot", capacity=0, hazard=0.1, accelerator="gpuB"),
    ]
    works = [town.work("b", 6, within_h=40), town.work("a", 2, within_h=40, model="n")]
    speeds = {("m", "gpu"): 1000.0, ("n", "gpu"): 1000.0, ("m", "gpuB"): 1000.0}
    snapshot = msgspec.structs.replace(town.snapshot(works, offers, speeds=speeds), later_starts=False)
    snapshot = with_record(snapshot, "s/spot", flapping(snapshot.now_us, 3, 4.0, USD // 2))
    plan = solve(snapshot)
    assert check(snapshot, plan) == []
    assert [(each.kind, each.awaits, each.offer_key) for each in plan.later] == [("spot", "s/spot", "y/cheap")]
    [now] = [each for each in plan.starts if each.from_us == snapshot.now_us]
    assert (now.offer_key, now.model) == ("x/dear", "n")
    again = msgspec.structs.replace(snapshot, now_us=snapshot.now_us + 5_000_000, waits=solve(snapshot).later)
    assert "free" not in {each.kind for each in solve(again).later}
