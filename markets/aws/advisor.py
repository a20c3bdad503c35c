"""How often spot is taken away: AWS's public Spot Instance Advisor, by region and type. Unverified against the live service.

Source: the file that AWS's own advisor page reads (recorded 2025-07): of the instances of a type, which part was interrupted
in the month before, in five classes. A class is taken at its upper bound, the open one (above 20 %) at 40 %, and a month's
part becomes an hourly rate: -ln(1 - part) / 730. It says nothing of a single zone or of today.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from urllib.parse import urlsplit

import structlog

from markets.errors import MarketsError
from markets.provider.api import ProviderApi, Reach
from markets.provider.shape import Shape

ADVISOR = "https://spot-bid-advisor.s3.amazonaws.com/spot-advisor-data.json"
HOURS_A_MONTH = 730
_AGE_S, _RETRY_S = 86_400, 900
_PARTS = tuple(map(Decimal, ("0.05", "0.10", "0.15", "0.20", "0.40")))
# What an instance's hour is risked by, by the advisor's class.
HAZARDS: tuple[Decimal, ...] = tuple(round(-(1 - part).ln() / HOURS_A_MONTH, 9) for part in _PARTS)
_log = structlog.get_logger("markets.aws")


class Advisor:
    """Read at most once a day. What cannot be read leaves what was known before, and at first nothing: unknown, not safe."""

    def __init__(self, url: str = ADVISOR) -> None:
        parts = urlsplit(url)
        self._api = ProviderApi("aws", Reach(f"{parts.scheme}://{parts.netloc}", timeout_s=30))
        self._path = parts.path
        self._known: Mapping[str, Mapping[str, Decimal]] = MappingProxyType({})
        self._next_s = 0.0

    async def hazards(self, region: str) -> Mapping[str, Decimal]:
        """Interruptions an hour by instance type; a type that is not there is unknown."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _RETRY_S
            try:
                self._known = read_advisor(await self._api.get(self._path))
                self._next_s = time.monotonic() + _AGE_S
            except MarketsError as error:
                _log.warning("aws.advisor_unavailable", error=f"{error.code}: {error}")
        return self._known.get(region, {})

    async def close(self) -> None:
        await self._api.close()


def read_advisor(answer: Shape) -> dict[str, dict[str, Decimal]]:
    """Region → type → interruptions an hour, of Linux. Classes that are not AWS's five are left out."""
    found: dict[str, dict[str, Decimal]] = {}
    for region, systems in answer["spot_advisor"].entries():
        linux = systems.get("Linux")
        for name, row in linux.entries() if linux else ():
            index = row["r"].whole()
            if 0 <= index < len(HAZARDS):
                found.setdefault(region, {})[name] = HAZARDS[index]
    return found
