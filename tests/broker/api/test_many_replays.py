"""Ten thousand sealed decisions, made again bit for bit."""

from __future__ import annotations

from typing import Any

import pytest

from broker.compliance.decisions import record
from broker.compliance.pinning import store_policy
from broker.compliance.replaying import PAGE, replay
from ledger import seal
from solver.residency import FactEvidence, Facts, compile_countries, evaluate

RECORDS = 10_000
SECRET = b"a secret of thirty-two bytes...."


def place(number: int) -> Facts:
    """Of 500 places in 4 countries, some without valid evidence."""
    return Facts(
        country=("DE", "FR", "US", None)[number % 4],
        subdivision=None,
        location_tier=("claimed", "named_datacenter", "hyperscaler_region")[number % 3],
        confidentiality="none",
        launch="vm",
        market=f"market-{number % 500}",
        operator=f"operator-{number % 7}",
        evidence=(FactEvidence(kind="provider_api", source="test", valid_until_us=number % 11),),
    )


@pytest.mark.residency
@pytest.mark.timeout(600)
async def test_ten_thousand_records_come_out_again_bit_for_bit(database: Any) -> None:
    policies = [compile_countries(names) for names in (["DE"], ["eu"], ["US", "FR"])]
    async with database.transaction() as session:
        hashes = [await store_policy(session, each, 1) for each in policies]
    for start in range(0, RECORDS, 500):
        async with database.transaction() as session:
            for number in range(start, start + 500):
                policy, facts, at_us = policies[number % 3], place(number), number % 13
                await record(
                    session,
                    SECRET,
                    point="lease",
                    batch=f"batch_{number % 50}",
                    rental="rental_1",
                    offer_key=None,
                    policy_hash=hashes[number % 3],
                    policy=policy,
                    facts=facts,
                    decision=evaluate(policy, facts, at_us),
                    at_us=at_us,
                )
    found = []
    for after in range(0, RECORDS, PAGE):
        async with database.transaction() as session:
            found += await replay(session, SECRET, after_seq=after)
            assert (await seal.head(session, "decisions")).seq == RECORDS
    assert len(found) == RECORDS
    assert [each for each in found if each.wrong] == []
    assert {each.outcome for each in found} == {"allow", "deny"}
