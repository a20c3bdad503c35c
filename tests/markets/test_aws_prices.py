"""AWS's prices: how often spot is taken away, and the list for a broker that does not rent there."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import pytest

from markets.aws.advisor import HAZARDS, Advisor, read_advisor
from markets.errors import NoCredentials, NotAuthorized
from markets.provider.shape import Shape
from markets.sources.aws import AwsPrices
from tests.markets.aws_rig import REGION, TYPES, Aws
from tests.markets.sources.document import recorded
from tests.markets.sources.loopback import Loopback

KEYS = {"access_key_id": "AKIDTEST", "secret_access_key": "secret"}


def prices(aws: Aws, cache: Path, keys: list[Mapping[str, str] | None]) -> AwsPrices:
    """The source, which is given `keys` one after the other, and the last for good."""

    async def give() -> Mapping[str, str] | None:
        return keys.pop(0) if len(keys) > 1 else keys[0]

    return AwsPrices(
        give,
        regions=(REGION,),
        cache=cache,
        types=TYPES,
        endpoint_url=aws.url,
        price_list_url=aws.url + "/price-list/{region}/index.csv",
        advisor_url=aws.url + "/spot-advisor-data.json",
    )


def test_the_classes_of_the_advisor_are_rates_that_grow() -> None:
    assert list(HAZARDS) == sorted(set(HAZARDS))
    # 20 % in a month of 730 hours
    assert abs(HAZARDS[3] - Decimal("0.000305676")) < Decimal("1e-8")


def test_the_recorded_advisor_is_read() -> None:
    """2025-07: p4d.24xlarge in us-east-1 is in the class of 10 to 15 %."""
    found = read_advisor(Shape(recorded("aws", "spot-advisor-data.json"), "aws"))
    assert found["us-east-1"]["p4d.24xlarge"] == HAZARDS[2]
    assert len(found) > 20 and all(0 < rate < 1 for types in found.values() for rate in types.values())


async def test_an_advisor_that_cannot_be_read_leaves_the_rate_unknown() -> None:
    async with Loopback({"GET /spot-advisor-data.json": {"spot_advisor": "moved"}}) as api:
        advisor = Advisor(f"{api.url}/spot-advisor-data.json")
        assert await advisor.hazards(REGION) == {} == await advisor.hazards(REGION)
        await advisor.close()
    assert len(api.requests) == 1, "asked again at once"


@pytest.mark.aws
async def test_spot_has_the_advisors_rate_and_on_demand_none(aws: Aws, tmp_path: Path) -> None:
    source = prices(aws, tmp_path, [KEYS])
    offers = await source.offers()
    await source.close()
    rates = {(each.key.sku, each.pricing): each.interruption_per_hour for each in offers}
    assert rates["g5.xlarge", "spot"] == HAZARDS[4] and rates["c5.large", "spot"] == HAZARDS[0]
    assert rates["g4dn.xlarge", "spot"] is None, "unknown is not safe"
    assert rates["g5.xlarge", "on_demand"] == 0
    assert aws.calls["advisor"] == 1


@pytest.mark.aws
async def test_without_keys_aws_is_not_asked_though_this_machine_may_have_a_role(aws: Aws, tmp_path: Path) -> None:
    source = prices(aws, tmp_path, [None])
    with pytest.raises(NoCredentials, match="access_key_id, secret_access_key"):
        await source.offers()
    assert not aws.asked


@pytest.mark.aws
async def test_keys_that_are_taken_away_are_used_no_more(aws: Aws, tmp_path: Path) -> None:
    source = prices(aws, tmp_path, [KEYS, None])
    await source.offers()
    asked = len(aws.asked)
    with pytest.raises(NoCredentials):
        await source.offers()
    await source.close()
    assert len(aws.asked) == asked


@pytest.mark.aws
async def test_keys_that_are_refused_are_a_typed_error(aws: Aws, tmp_path: Path) -> None:
    aws.faults["DescribeInstanceTypes"] = [(401, "AuthFailure")]
    source = prices(aws, tmp_path, [KEYS])
    with pytest.raises(NotAuthorized):
        await source.offers()
    await source.close()
