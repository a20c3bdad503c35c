"""Residency policies over HTTP: what a document says of the offers of now."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from broker.api.policy_shapes import PolicyTest, Tested
from broker.api.problems import bad_request
from broker.api.registry import EVERYONE, Call, Route, route
from broker.compliance.paths import data_paths
from broker.compliance.trial import summary, tried
from broker.control.convert import facts_of
from broker.control.snapshot import listed_offers
from jobs.clock import db_now
from solver.residency.document import Document, Reading, read_document
from solver.residency.effective import effective


async def test_policy(call: Call, body: PolicyTest) -> Tested:
    """Hold a policy document against the offers of now; nothing is changed.

    Each is judged with where this broker keeps input, parts and logs: `key, outcome, reasons, evidence`.
    """
    reading = read_document(body.text)
    policy = effective([understood(reading)], data_class=body.data_class, project=body.node)
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        listed = await listed_offers(session, call.services, now_us=now_us)
    settings = call.services.settings
    paths = {each.offer.launch: data_paths(settings, now_us, each.offer.launch) for each in listed}
    some = tried(
        policy, ((str(each.offer.key), facts_of(each.offer, paths[each.offer.launch])) for each in listed), now_us
    )
    return Tested(
        policy=understood(reading).label,
        data_class=body.data_class,
        data=[each.shape() for each in some],
        summary=summary(some),
        findings=findings(reading),
    )


def understood(reading: Reading) -> Document:
    """The document that was read. Raises Problem 400 with the first thing that is wrong with it."""
    if reading.document is None:
        first, more = reading.errors[0], len(reading.errors) - 1
        others = f" ({more} more; `broker policy validate` shows all)" if more else ""
        raise bad_request("invalid_policy", f"{first}{others}", "text")
    return reading.document


def findings(reading: Reading) -> list[dict[str, Any]]:
    return [asdict(each) for each in reading.findings]


ROUTES: tuple[Route, ...] = (route("POST", "/v1/policies/test", test_policy, tag="policies", roles=EVERYONE),)
