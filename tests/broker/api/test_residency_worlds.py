"""Random worlds: no byte of a classified batch is readable on a machine that the policy refuses by the facts known at that
moment, and with any one point of enforcement gone another still stands, where there are two. The test counts what the point
that is gone would have refused: a point that never mattered would prove nothing.

RESIDENCY_WORLDS is how many worlds each point gets in the long run (`make residency`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from broker.api import worker, worker_parts
from broker.control import checked, place
from solver.residency import Decision, Reason
from solver.view import View
from tests.support.open_door import Unasked
from tests.support.residency_world import World, lived

ALLOW = Decision(outcome="allow", reasons=(Reason(rule_id="-", field="-", wanted="-", found="-", code="allowed"),))
WORLDS = int(os.environ.get("RESIDENCY_WORLDS", "1"))
ACTIONS = 100
# A world goes on until the point that is gone would have been needed; so many acts without that prove nothing.
MOST_ACTIONS = 2400


class Gone:
    """A point that says yes to everything. `missed` is how often it would have said no."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.missed = patch, 0

    def note(self, is_no: bool) -> None:
        self.missed += is_no

    def asked(self, module: Any, name: str, instead: Any, is_no: Callable[[Any], bool]) -> None:
        original = getattr(module, name)

        async def yes(*args: Any) -> Any:
            self.note(is_no(await original(*args)))
            return instead

        self.patch.setattr(module, name, yes)

    def eligibility(self) -> None:
        decision = View.decision

        def allowed(*args: Any) -> Decision:
            self.note(decision(*args).outcome == "deny")
            return ALLOW

        self.patch.setattr(View, "decision", allowed)

    def checker(self) -> None:
        check = checked.check

        def unchecked(*args: Any) -> list[Any]:
            self.note(bool(check(*args)))
            return []

        self.patch.setattr(checked, "check", unchecked)

    def launch(self) -> None:
        self.asked(place, "refusal", None, lambda found: found is not None)

    def hello(self) -> None:
        self.asked(worker, "refusal", None, lambda found: found is not None)

    def address(self) -> None:
        against = worker._against

        def agrees(what: Any) -> None:
            self.note(against(what) is not None)

        self.patch.setattr(worker, "_against", agrees)

    def candidates(self) -> None:
        original = worker.candidates

        async def everything(*args: Any) -> Any:
            found = await original(*args)
            permitted = [each async for each in found]
            self.note(bool(found.forbidden))
            return Unasked([*permitted, *(each.id for each, _ in found.forbidden)])

        self.patch.setattr(worker, "candidates", everything)

    def release(self) -> None:
        self.asked(worker, "released", True, lambda found: not found)

    def heartbeat(self) -> None:
        self.asked(worker, "still_allowed", True, lambda found: not found)

    def read(self) -> None:
        self.asked(worker_parts, "may_read", True, lambda found: not found)


# From the plan to the byte. `read`, of an input whose permission was given out already, stands alone
# (test_whereabouts.py shows that it stands).
POINTS = ("eligibility", "checker", "launch", "hello", "address", "candidates", "release", "heartbeat", "read")
DOUBLED = POINTS[:-1]
# These only ask again what another has made sure of a moment before: while that stands there is nothing for them to refuse.
SECOND = frozenset({"checker", "release"})


async def world_of(server: Any, patch: pytest.MonkeyPatch, seed: int, actions: int) -> World:
    world = World.of(server, seed)
    patch.setattr(server.services.networks, "country_of", world.observed)
    return await lived(world, actions)


async def test_nothing_is_readable_where_the_policy_refuses(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await world_of(server, monkeypatch, 1, 30)
    for _ in range(60):
        if world.given and world.read:
            break
        await world.act()
    assert world.forbidden == []
    assert world.given and world.read, "nothing was given out at all: this world proves nothing"


async def test_with_every_point_gone_something_would_be(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is the points that keep it, and not the circumstances; and the oracle sees it."""
    for point in POINTS:
        getattr(Gone(monkeypatch), point)()
    world = await world_of(server, monkeypatch, 3, 40)
    assert world.forbidden


@pytest.mark.residency
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(WORLDS))
@pytest.mark.parametrize("point", ["none", *DOUBLED])
async def test_with_one_point_gone_another_still_stands(
    server: Any, monkeypatch: pytest.MonkeyPatch, point: str, seed: int
) -> None:
    gone = Gone(monkeypatch)
    if point != "none":
        getattr(gone, point)()
    world = await world_of(server, monkeypatch, 100 + seed, ACTIONS)
    is_needed, acts = point not in ("none", *SECOND), ACTIONS
    while not world.given or (is_needed and not gone.missed):
        assert acts < MOST_ACTIONS, f"without {point}: {gone.missed} missed, {world.given} leases"
        await world.act()
        acts += 1
    assert world.forbidden == []
    assert is_needed or not gone.missed
    print(f"without {point}: {gone.missed} missed, {world.given} leases, {world.read} reads in {acts} acts")
