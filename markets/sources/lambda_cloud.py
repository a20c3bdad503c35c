"""Lambda: on-demand machines, one list of types with the regions that have room. Unverified against the live service.

Source: Lambda Cloud API, openapi 1.6.0 (2025); the document of 2023 (1.4.0) has no `gpu_description` and no count of GPUs, and is
read too. Prices are US cents an hour. Billing by the minute and traffic without charge are believed, not documented there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

from markets.errors import ShapeDrift
from markets.offer import Offer
from markets.provider.api import ProviderApi, Reach
from markets.provider.listing import MIB_PER_GIB, Said, country_of, declared, distinct, offer
from markets.provider.login import CredentialSource, bearer
from markets.provider.shape import Shape, rows

MARKET = "lambda"
REACH = Reach("https://cloud.lambda.ai")
LOGIN = bearer()
TYPES = "/api/v1/instance-types"
CENTS = Decimal(100)
# "8x H100 (80 GB SXM5)", "1x RTX A100 (24 GB)"
_DESCRIBED = re.compile(r"(?:(?P<count>\d+)x )?(?P<device>[^(]+?)(?: \((?P<gib>\d+) GB(?: (?P<form>[^)]+))?\))?")


class LambdaSource:
    """A type that a region has no room for is not named there: regions seen earlier are remembered, and sold out."""

    name = MARKET

    def __init__(self, credentials: CredentialSource, reach: Reach = REACH) -> None:
        self._api = ProviderApi(MARKET, reach, login=LOGIN, credentials=credentials)
        self._regions: dict[str, dict[str, str]] = {}

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        answer = await self._api.get(TYPES)
        return distinct(rows((row for _, row in answer["data"].entries()), lambda row: self._of(row, at)))

    async def close(self) -> None:
        await self._api.close()

    def _of(self, row: Shape, at: datetime) -> Iterator[Offer]:
        kind = row["instance_type"]
        sku = kind["name"].text()
        available = {each["name"].text(): each["description"].text() for each in _regions(row)}
        known = self._regions.setdefault(sku, {})
        known.update(available)
        device, form, memory_mib, count = _device(kind)
        everywhere: list[tuple[str | None, str]] = [*sorted(known.items())] or [(None, "")]
        for region, words in everywhere:
            yield offer(
                Said(
                    market=MARKET,
                    sku=sku,
                    pricing="on_demand",
                    launch="vm",
                    price=kind["price_cents_per_hour"].number() / CENTS,
                    source="Lambda /instance-types",
                    raw={"sku": sku, "type": kind.value, "region": region},
                    device=device,
                    count=count,
                    memory_mib=memory_mib,
                    form=form,
                    region=region,
                    place=declared(country_of(words), "Lambda /instance-types"),
                    capacity=None if region in available else 0,
                    granularity_s=60,
                    interruption_per_hour=Decimal(0),
                ),
                at,
            )


def _regions(row: Shape) -> list[Shape]:
    return row["regions_with_capacity_available"].each()


def _device(kind: Shape) -> tuple[str, str | None, int, int]:
    """Name, form, MiB of one, count. The count is in `specs` since 2025, and in the description before."""
    described = kind["description"]
    gpu = kind.get("gpu_description")
    words = _DESCRIBED.fullmatch((gpu or described).text())
    if words is None:
        raise ShapeDrift(f"{(gpu or described).where}: {(gpu or described).text()!r} names no GPU")
    gpus = kind["specs"].get("gpus")
    counted = re.match(r"(\d+)x ", described.text())
    if gpus is None and counted is None:
        raise ShapeDrift(f"{kind.where} says nowhere how many GPUs it has")
    count = gpus.whole() if gpus else int(counted[1]) if counted else 0
    return words["device"], words["form"], int(words["gib"] or 0) * MIB_PER_GIB, count
