"""What a crash leaves at EC2 beside machines: launch templates, which live as long as one call of CreateFleet."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import structlog

from markets.aws.account import Account, BrokenOff
from markets.aws.listing import OWNER
from markets.errors import MarketsError

# A call takes seconds; the token in a template opens nothing after 15 minutes.
ABANDONED = timedelta(hours=1)
_log = structlog.get_logger("markets.aws")


class Leftovers:
    """Removes the templates that brokers of this owner have abandoned, each region's at most once in `ABANDONED`."""

    def __init__(self, account: Account, owner: str) -> None:
        self._account, self._owner = account, owner
        self._looked: dict[str, datetime] = {}

    async def sweep(self, region: str, now: datetime) -> None:
        """`now` is AWS's own clock. What AWS refuses is logged and tried again in an hour: nothing hangs on it."""
        looked = self._looked.get(region)
        if looked is not None and now - looked < ABANDONED:
            return
        self._looked[region] = now
        mine = [{"Name": f"tag:{OWNER}", "Values": [self._owner]}]
        try:
            found, _ = await self._account.pages(
                region, "describe_launch_templates", "LaunchTemplates", page=200, Filters=mine
            )
            for name in abandoned(found, now):
                await self._account.ask(region, "delete_launch_template", LaunchTemplateName=name)
                _log.info("aws.template_removed", rental=name, region=region)
        except (MarketsError, BrokenOff) as error:
            _log.warning("aws.templates_unswept", region=region, error=str(error))


def abandoned(templates: list[Mapping[str, Any]], now: datetime) -> list[str]:
    """The names of those that are older than any call lasts."""
    return [each["LaunchTemplateName"] for each in templates if now - each["CreateTime"] > ABANDONED]
