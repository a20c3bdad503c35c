"""Spot under a deadline: the net never misses, hindsight is never beaten, and the formats' traps are refused."""

from __future__ import annotations

import gzip
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.backtest import prices, run, traces
from solver.backtest.errors import BadPrices, BadTrace
from solver.spot import baselines
from solver.spot.chain import fit
from solver.spot.clairvoyant import Clairvoyant
from solver.spot.expected_cost import ExpectedCost
from solver.spot.replay import replay
from solver.spot.world import IDLE, ON_DEMAND, Job, Pools

TICK = 600.0


def flapping(seed: int, zones: int, ticks: int, lost: float, found: float):
    source = np.random.default_rng(seed)
    is_up = np.zeros((zones, ticks), dtype=bool)
    now = source.random(zones) < 0.5
    for tick in range(ticks):
        now = np.where(now, source.random(zones) >= lost, source.random(zones) < found)
        is_up[:, tick] = now
    return is_up


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    zones=st.integers(1, 2),
    lost=st.floats(0.01, 0.9),
    found=st.floats(0.01, 0.9),
    slack=st.floats(1.0, 2.0),
    restart_s=st.sampled_from([0.0, 180.0, 720.0, 900.0]),
)
def test_no_policy_with_the_net_is_ever_late_and_none_is_cheaper_than_hindsight(
    seed, zones, lost, found, slack, restart_s
):
    job = Job(4 * 3600.0, 4 * 3600.0 * slack + restart_s, restart_s)
    ticks = math.ceil(job.deadline_s / TICK)
    record = flapping(seed, zones, ticks + 200, lost, found)
    history, is_up = record[:, :200], record[:, 200:]
    pools = Pools(tuple(0.2 + 0.1 * zone for zone in range(zones)), 1.0)
    best = Clairvoyant(job, pools, is_up, TICK)
    assert not replay(best, job, pools, is_up, TICK).is_missed
    made = [make(job, pools, TICK) for make in (baselines.greedy, baselines.last_moment, baselines.uniform_progress)]
    for decide in (*made, ExpectedCost(job, pools, history, TICK)):
        outcome = replay(decide, job, pools, is_up, TICK)
        assert not outcome.is_missed, "the safety net let a job miss its deadline"
        assert outcome.cost >= best.cost - 1e-6, "a policy was cheaper than what is the cheapest"


@settings(max_examples=25, deadline=None)
@given(
    moods=st.lists(
        st.sampled_from(["calm", "at once", "when ready", "out of slack", "all gone"]), min_size=1, max_size=5
    ),
    spare_s=st.floats(0.0, 3 * 3600.0),
    restart_s=st.sampled_from([0.0, 1.0, 195.0, 720.0, 1300.0]),
    tick_s=st.sampled_from([195.0, 600.0]),
    zones=st.integers(1, 2),
)
def test_who_takes_spot_away_at_the_worst_moment_makes_no_policy_late(moods, spare_s, restart_s, tick_s, zones):
    """The record is made as the policy goes, by one who sees what it holds: machines are taken as soon as they are begun, as
    soon as their restart is paid, when the slack is nearly gone, or all at once and for good; in any order."""
    job, pools = Job(2 * 3600.0, 2 * 3600.0 + restart_s + spare_s, restart_s), Pools((0.25,) * zones, 1.0)
    ticks = math.ceil(job.deadline_s / tick_s)

    def against(decide):
        is_up = np.ones((zones, ticks), dtype=bool)

        def chased(now):
            target = decide(now)
            tick = round((job.deadline_s - now.left_s) / tick_s)
            mood = moods[tick * len(moods) // ticks]
            held, slack_s = target >= 0, now.left_s - now.work_s - restart_s
            takes = {
                "calm": False,
                "at once": held,
                "when ready": held and (now.debt_s if target == now.where else restart_s) <= tick_s,
                "out of slack": held and slack_s < 3 * tick_s,
                "all gone": True,
            }[mood]
            if takes and tick + 1 < ticks:
                is_up[:, tick + 1] = False if mood == "all gone" else np.arange(zones) != target
            return target

        return replay(chased, job, pools, is_up, tick_s)

    made = [make(job, pools, tick_s) for make in (baselines.greedy, baselines.last_moment, baselines.uniform_progress)]
    for decide in (*made, ExpectedCost(job, pools, np.ones((zones, 200), dtype=bool), tick_s)):
        assert not against(decide).is_missed, "a job missed its deadline"


def test_hindsight_is_what_trying_everything_finds():
    """Brute force over every way through eight ticks, one zone: the independent judge of the dynamic program."""
    job, pools = Job(3 * TICK, 8 * TICK, TICK), Pools((0.3,), 1.0)
    for seed in range(6):
        is_up = flapping(seed, 1, 8, 0.3, 0.4)
        costs = []
        for way in itertools.product((IDLE, ON_DEMAND, 0), repeat=8):
            if any(place == 0 and not is_up[0, tick] for tick, place in enumerate(way)):
                continue
            steps = iter(way)
            outcome = replay(lambda now, steps=steps: next(steps), job, pools, is_up, TICK)
            if not outcome.is_missed:
                costs.append(outcome.cost)
        assert Clairvoyant(job, pools, is_up, TICK).cost == pytest.approx(min(costs))


def test_a_machine_that_holds_is_not_left_for_one_that_looks_as_good():
    """Seen in an early version: with two equal zones it restarted every tick, and ended on demand."""
    is_up = np.ones((2, 400), dtype=bool)
    job, pools = Job(10 * 3600.0, 15 * 3600.0, 720.0), Pools((0.35, 0.35), 1.0)
    outcome = replay(ExpectedCost(job, pools, is_up[:, :300], TICK), job, pools, is_up[:, :90], TICK)
    assert outcome.spot_s == pytest.approx(10 * 3600.0 + 720.0)
    assert outcome.on_demand_s == 0


def test_spot_dearer_than_on_demand_is_not_taken():
    """AWS p5.48xlarge in ca-central-1 had a saving of -62 %."""
    is_up = np.ones((1, 200), dtype=bool)
    job, pools = Job(4 * 3600.0, 8 * 3600.0, 180.0), Pools((1.62,), 1.0)
    for decide in (ExpectedCost(job, pools, is_up[:, :100], TICK), baselines.greedy(job, pools, TICK)):
        assert replay(decide, job, pools, is_up[:, :48], TICK).spot_s == 0


def test_rows_of_a_chain_are_probabilities_also_without_a_history():
    for record in (np.zeros(2, dtype=bool), np.ones(50, dtype=bool), flapping(1, 1, 500, 0.2, 0.2)[0]):
        chain = fit(record, TICK, (600.0, 1800.0))
        assert np.allclose(chain.step.sum(axis=1), 1)
        assert (chain.step >= 0).all()


def test_a_spell_of_hours_is_expected_to_last_where_most_end_within_the_hour():
    """Up for 10 or 20 minutes five times, then for 20 hours, over and over: the hazard falls with the age."""
    pattern = ([True, False, True, True, False, False] * 5 + [True] * 120 + [False] * 30) * 6
    edges = (600.0, 2400.0, 4 * 3600.0)
    chain = fit(np.array(pattern), TICK, edges)
    ends = [chain.step[4 + age, 0] for age in range(4)]
    assert ends == sorted(ends, reverse=True)
    assert ends[0] > 0.25
    assert ends[3] < 0.02


def test_seeds_draw_other_moments_of_other_records():
    """One seed drew the same moment of all traces: five traces of a data set were one sample of its weather."""
    names = ("us-east-1a", "us-east-1c")
    bodies = json.dumps({"metadata": {"gap_seconds": TICK}, "data": [1, 0] * 2000}).encode()
    records = [traces.read(f"{name}_v100_1.json", bodies) for name in names]
    job = Job(4 * 3600.0, 6 * 3600.0, 720.0)
    drawn = [[start.tick for start in run.starts([record], job, 5, world)] for world, record in enumerate(records)]
    assert len(set(drawn[0] + drawn[1])) > 5
    assert drawn[0] == [start.tick for start in run.starts(records, job, 5)]


def test_the_inverted_trace_is_refused():
    """Frontier-CS publishes the traces of NSDI 2024 with the sign turned."""
    row = {"gap_seconds": 195, "start_time": "2023-03-30T13:38:47", "data": "0011"}
    with pytest.raises(BadTrace, match="either sign"):
        traces.read("us-east-1a_v100_1.jsonl", json.dumps(row | {"encoding": "1=preempted"}).encode())
    told = traces.read("us-east-1a_v100_1.jsonl", json.dumps(row | {"encoding": "1=available"}).encode())
    assert told.is_up.tolist() == [False, False, True, True]
    assert (told.zone, told.accelerator, told.count) == ("us-east-1a", "v100", 1)


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"metadata": {}, "data": [1, 0]}', b'{"metadata": {"gap_seconds": 0}, "data": [1, 0]}',
     b'{"metadata": {"gap_seconds": 60}, "data": [1, "x"]}', b'{"metadata": {"gap_seconds": 60}, "data": [1, -1]}',
     b'{"metadata": {"gap_seconds": 60}, "data": 5}', b'{"metadata": {"gap_seconds": 1e999}, "data": [1, 0]}'],
)  # fmt: skip
def test_a_file_that_is_no_trace_is_refused_by_name(body):
    with pytest.raises(BadTrace, match=r"zone_v100_1\.json"):
        traces.read("zone_v100_1.json", body)


@pytest.mark.parametrize(
    "line",
    ["[1]", "null", "{}", '{"gap_seconds": NaN, "start_time": "2023-01-01", "data": "01", "encoding": "1=available"}',
     '{"gap_seconds": 195, "start_time": "2023-01-01", "data": "", "encoding": "1=available"}'],
)  # fmt: skip
def test_a_line_that_is_no_window_is_refused_by_its_number(line):
    with pytest.raises(BadTrace, match=r"zone_v100_1\.jsonl, line 2"):
        traces.read("zone_v100_1.jsonl", f"\n{line}\n".encode())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"instance,spot_usd_hour,zone\np3.2xlarge,0.9\n", "line 2: no zone"),
        (b"zone,instance,spot_usd_hour\na,p3.2xlarge,cheap\n", "line 2: 'cheap' is no price"),
        (
            b"region,instance,hour_usd,hour_spot_usd,gpu,gpu_count\nus,x,1,1,L4-24GB,many\n",
            "line 2: 'many' is no count",
        ),
    ],
)
def test_a_price_list_with_a_broken_line_is_refused_by_its_number(content, said):
    with pytest.raises(BadPrices, match=said):
        prices.read({"list.csv": content, "where.csv": b"NAME;ZONE\nnvidia-l4;us\n"})


def test_unknown_prices_are_never_free():
    spot = (
        b"timestamp,zone,instance,spot_usd_hour,product\nt,us-east-1a,p3.2xlarge,0.00,L\nt,us-east-1a,p3.2xlarge,,L\n"
    )
    listed = b"date,region,instance,on_demand_usd_hour\n2023-01-01,us-east-1,p3.2xlarge,3.06\n"
    trace = traces.read("us-east-1a_v100_1.json", b'{"metadata": {"gap_seconds": 60}, "data": [1, 0]}')
    with pytest.raises(BadPrices, match="no spot price of v100 x1"):
        prices.pools(prices.read({"a.csv": spot, "b.csv": listed}), [trace])
    dear = spot + b"t,us-east-1a,p3.2xlarge,0.918,L\n"
    pools = prices.pools(prices.read({"a.csv.gz": gzip.compress(dear), "b.csv": listed}), [trace])
    assert pools == Pools((0.918,), 3.06)


def test_google_prices_count_only_where_the_accelerator_exists():
    listed = (
        b"date,instance,region,hour_usd,hour_spot_usd,month_1y_usd,month_3y_usd,gpu,gpu_count\n"
        b"d,g2-standard-4,nowhere1,0.70,0.077,,,L4-24GB,1.0\nd,g2-standard-4,us-central1,0.71,0.27,,,L4-24GB,1.0\n"
    )
    with pytest.raises(BadPrices, match="without the accelerator"):
        prices.read({"gcp.csv": listed})
    found = prices.read({"gcp.csv": listed, "where.csv": b"NAME;ZONE\nnvidia-l4;us-central1\n"})
    assert {price.usd_hour for price in found} == {0.71, 0.27}


def test_equal_inputs_give_equal_reports():
    record = flapping(5, 1, 900, 0.1, 0.2)[0].astype(int).tolist()
    body = json.dumps({"metadata": {"gap_seconds": TICK}, "data": record}).encode()
    job = Job(4 * 3600.0, 6 * 3600.0, 720.0)
    told = []
    for _ in range(2):
        trace = traces.read("us-east-1a_v100_1.json", body)
        worlds = [([trace], Pools((0.35,), 1.0))]
        results, rows = run.backtest(worlds, job, run.POLICIES, 3)
        told.append(json.dumps(run.report(results, rows, job, worlds, {"t": body}, 3)))
    assert told[0] == told[1]
    policies = {each["policy"]: each for each in json.loads(told[0])["policies"]}
    assert set(policies) == set(run.POLICIES)
    assert policies["clairvoyant"]["cost_over_clairvoyant"] == pytest.approx(1, abs=0.005)
    assert policies["broker"]["missed"] == 0
