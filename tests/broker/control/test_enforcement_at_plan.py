"""With one point of enforcement disabled alone, the next one catches what the policy forbids: from the plan to the launch."""

from __future__ import annotations

from typing import Any

import pytest

from broker.compliance.tables import DecisionRow
from broker.control.place import Placer
from broker.control.plan import Planner
from markets.tables import RentalRow
from solver.residency import Decision, Reason

ALLOW = Decision(outcome="allow", reasons=(Reason(rule_id="-", field="-", wanted="-", found="-", code="allowed"),))


def disable(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    match point:
        case "eligibility":
            monkeypatch.setattr("solver.view.View.decision", lambda *_: ALLOW)
        case "checker":
            monkeypatch.setattr("broker.control.checked.check", lambda *_: [])
        case "launch":

            async def nothing(*_: Any) -> None:
                return None

            monkeypatch.setattr("broker.control.place.refusal", nothing)


@pytest.mark.parametrize("point", ["none", "eligibility", "checker"])
async def test_nothing_is_rented_where_the_policy_forbids_with_either_of_two_points_disabled(
    town: Any, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    await town.list_offers(town.offer(country="US"))
    await town.batch()
    disable(monkeypatch, point)
    await Planner(town.services).step()
    assert await town.intents() == []


async def test_with_both_disabled_it_would_be_rented_and_the_launch_refuses(
    town: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the two above are what stopped it, and a third stands behind them."""
    await town.list_offers(town.offer(country="US"))
    await town.batch()
    for point in ("eligibility", "checker"):
        disable(monkeypatch, point)
    await Planner(town.services).step()
    [intent] = await town.intents()
    await Placer(town.services, None).step()
    row = await town.row(RentalRow, intent.id)
    assert row.state == "failed"
    assert "residency forbids" in row.error
    words = {(each.point, each.outcome) for each in await town.rows(DecisionRow)}
    assert words == {("plan", "deny"), ("launch", "deny")}


async def test_a_market_that_tells_the_truth_only_after_the_plan_is_refused_at_launch(town: Any) -> None:
    await town.list_offers(town.offer(country="DE"))
    await town.batch()
    await Planner(town.services).step()
    [intent] = await town.intents()
    await town.list_offers(town.offer(country="US"))
    await Placer(town.services, None).step()
    assert (await town.row(RentalRow, intent.id)).state == "failed"
    words = {(each.point, each.outcome) for each in await town.rows(DecisionRow)}
    assert words == {("plan", "allow"), ("launch", "deny")}
