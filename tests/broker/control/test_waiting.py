"""Never silent: whatever a batch is in, it moves, has ended, or says on what it waits and until when."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest

from broker.control.waiting import Basis, Cause, Facts, Machine, On, expected_end, waiting_now
from jobs.types import TERMINAL, BatchStatus

NOW, LATER = 1_000_000_000, 5_000_000_000
STATUSES = [(status, ending) for status in get_args(BatchStatus) for ending in (None, "cancelled")]
MACHINES = [
    (),
    *(
        ({"worker": worker, "is_busy": busy},)
        for worker, busy in ((None, False), ("starting", False), ("ready", False), ("ready", True), ("gone", False))
    ),
]
CAUSES = [None, *(Cause(on=each, reasons=["because"], since_us=7) for each in ("capacity", "budget", "quota"))]
STOP = Cause(on="price_ceiling", reasons=["max_usd"], since_us=7, is_final=True)


def facts(status: Any = "in_progress", **known: Any) -> Facts:
    usual: dict[str, Any] = {"lines": 10, "open_lines": 10, "created_us": 1, "expires_us": LATER}
    return Facts(now_us=NOW, status=status, **({"ending": None} | usual | known))


def machine(**known: Any) -> Machine:
    return Machine(**({"rental": "rental_1", "since_us": 9, "state": "running", "worker": "ready"} | known))


def everything() -> list[Facts]:
    """All statuses × assignment × machines × leases × pause × cause × held back × what is left to do."""
    return [
        facts(
            status,
            ending=ending,
            planned_end_us=end,
            machines=[machine(**each) for each in machines],
            leases=leases,
            paused_us=paused,
            cause=cause,
            held_back=held,
            open_lines=left,
            own_lines=own,
            has_policy=policy,
        )
        for (status, ending), end, machines, leases, paused, cause, held, (left, own), policy in product(
            STATUSES,
            (None, NOW + 10, NOW - 10, LATER + 10),
            MACHINES,
            (0, 2),
            (None, 5),
            [*CAUSES[:2], STOP],
            ((), ("held back for 15 s more",)),
            ((10, 0), (3, 3), (0, 0)),
            (True, False),
        )
    ]


def test_no_batch_is_silent() -> None:
    for each in everything():
        wait = waiting_now(each)
        if each.status in TERMINAL:
            assert wait is None, each
            continue
        if wait is None:
            assert each.leases, f"it is said to move, and no worker has a line of it: {each}"
            assert each.status == "in_progress" and each.paused_us is None and each.ending is None, each
            continue
        assert wait.on in get_args(On), each
        assert wait.reasons and all(wait.reasons), each
        assert NOW <= wait.eta_us <= LATER, each
        assert wait.eta_basis in get_args(Basis), each
        assert 0 < wait.since_us <= NOW, each


@pytest.mark.parametrize(
    ("known", "on", "says"),
    [
        (facts("validating"), "validation", "read and checked"),
        (facts("validating", approval=Cause(on="approval", reasons=["$9"], since_us=3)), "approval", "$9"),
        (facts(paused_us=4, leases=2), "paused", "2 shards with lines in flight"),
        (facts("cancelling"), "finalizing", "cancelled"),
        (facts("finalizing", ending="expired"), "finalizing", "it is expired: its output"),
        (facts(open_lines=0), "finalizing", "all lines are answered"),
        (facts(open_lines=4, own_lines=4), "finalizing", "4 answers that need no engine"),
        (facts(), "planning", "the next plan decides"),
        (facts(planned_end_us=NOW + 5), "start", "rented next"),
        (facts(machines=[machine(state="intended", worker="awaited")]), "start", "is being rented"),
        (facts(machines=[machine(worker="awaited")]), "start", "boots"),
        (facts(machines=[machine(worker="starting")]), "start", "loads the model"),
        (facts(machines=[machine()]), "start", "takes its first lines"),
        (facts(machines=[machine(is_busy=True)]), "capacity", "works on batches before it"),
        (facts(machines=[machine(worker="failed")], cause=CAUSES[1]), "capacity", "because"),
        # budget refused a hold: the plan had chosen a place, and nothing is rented there
        (facts(planned_end_us=NOW + 5, cause=CAUSES[2]), "budget", "because"),
        # a part has a machine that boots, the rest has no place
        (facts(machines=[machine(worker="awaited")], cause=CAUSES[1]), "start", "boots"),
        (facts(held_back=["offer x: held back for 15 s more"], cause=CAUSES[1]), "start", "held back for 15 s"),
        (facts(has_policy=False), "residency", "not stored"),
        (facts(cause=STOP, leases=1), "price_ceiling", "max_usd"),
    ],
)
def test_it_waits_on_what_the_table_says(known: Facts, on: str, says: str) -> None:
    wait = waiting_now(known)
    assert wait is not None
    assert (wait.on, says in wait.reasons[0]) == (on, True), wait


@pytest.mark.parametrize(
    ("known", "on", "eta_us", "basis"),
    [
        (facts(planned_end_us=NOW + 5), "start", NOW + 5, "plan"),
        (facts(planned_end_us=NOW + 5), "budget", LATER, "deadline"),  # that plan is not carried out
        (facts(planned_end_us=NOW - 5, quoted_us=100), None, NOW + 100, "relaxed"),  # it should have ended by now
        (facts(quoted_us=100, open_lines=5), "paused", NOW + 50, "relaxed"),  # half is done
        # nobody quoted it: five of ten lines took 100 µs before the pause
        (facts(open_lines=5, in_progress_us=100, paused_us=200), "paused", NOW + 100, "relaxed"),
        (facts(quoted_us=LATER), "capacity", LATER, "deadline"),  # it ends at its deadline in any case
        (facts(quoted_us=100), "deadline", LATER, "deadline"),
        (facts(), "planning", LATER, "deadline"),
        (facts(lines=40_000), "finalizing", NOW + 3_000_000, "relaxed"),
        (facts(expires_us=NOW - 5), "planning", NOW, "deadline"),  # the next tick closes it
    ],
)
def test_the_end_is_expected_by_the_best_that_is_known(known: Facts, on: str | None, eta_us: int, basis: str) -> None:
    assert expected_end(known, on) == (eta_us, basis)
