"""A token endpoint as a market. What is rented is a process of this machine, which sends the requests and costs nothing itself.

What a rental costs are the tokens that its agent buys. The hourly price that it carries is that of an hour at the endpoint's
limits: budgets and ceilings look ahead by it. All state is in the market's folder, as of `markets.local`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import structlog

from markets.errors import NoCapacity, Unsupported
from markets.machine import Machines
from markets.market import Charge, Intent, Released, Rental
from markets.offer import Offer, OfferKey, quarantine
from markets.processes import Processes

_log = structlog.get_logger("markets.tokens")


class Prices(Protocol):
    """Where the endpoint's prices stand: its card."""

    name: str

    async def offers(self) -> list[Offer]: ...

    async def close(self) -> None: ...


class TokenMarket:
    """`models` are the endpoint's names of what is bought; at most `executors` processes at once buy one of them."""

    def __init__(
        self, prices: Prices, folder: Path, *, owner: str, models: Collection[str], executors: int = 1
    ) -> None:
        self.name = prices.name
        self._prices = prices
        self._owner = owner
        self._models = frozenset(models)
        self._executors = executors
        self._machines = Machines(folder)
        self._processes = Processes(self._machines, self.name, owner, lambda notes: OfferKey.parse(notes["offer"]))
        self._renting = asyncio.Lock()

    async def offers(self) -> list[Offer]:
        """The card's. What is bought has as many places as there may be executors, whoever has them now."""
        return [self._bought(offer) for offer in await self._prices.offers()]

    async def rent(self, offer: Offer, intent: Intent) -> Rental:
        """Start the executor. NoCapacity: nothing was started. Ambiguous: it did not start in time."""
        async with self._renting:
            if self._machines.look(intent.tag).phase in ("absent", "laid"):
                await asyncio.to_thread(self._check, offer)
                notes = {"owner": self._owner, "price": str(intent.max_price), "offer": str(offer.key)}
                await asyncio.to_thread(self._machines.lay, intent.tag, intent.start, notes)
            machine = await self._machines.launch(intent.tag)
        _log.info("tokens.rented", market=self.name, rental=intent.tag, pid=machine.pid)
        return self._processes.rental(machine)

    async def rental(self, tag: str) -> Rental:
        """As the records say now. RentalNotFound: no process was ever started under this tag."""
        return self._processes.rental(self._processes.known(tag))

    async def rentals(self) -> list[Rental]:
        """All of our owner, ended ones for two hours after their end."""
        return await self._processes.listed()

    async def release(self, tag: str) -> Released:
        """Kill the whole process group. StillReleasing: something of it is still there."""
        return await self._processes.release(tag)

    async def charges(self, from_at: datetime, to_at: datetime) -> list[Charge]:
        """Endpoints have no common way to say what was used; their invoices are read from a file."""
        raise Unsupported(
            f"{self.name}: an OpenAI-compatible endpoint does not say what it charges; import its invoice"
        )

    async def close(self) -> None:
        """Executors go on."""
        await self._prices.close()

    def _bought(self, offer: Offer) -> Offer:
        endpoint = offer.endpoint
        if endpoint is None or endpoint.mode != "sync" or endpoint.model not in self._models:
            return offer
        if not endpoint.base_url.endswith("/v1"):
            why = f"offer {offer.key}: requests go to …/v1/…, its address is {endpoint.base_url}"
            offer = quarantine(offer, f"{why}; say providers.{self.name}.url")
        elif not _is_private(endpoint.base_url):
            why = f"offer {offer.key}: prompts and the key would travel in clear text to {endpoint.base_url}"
            offer = quarantine(offer, f"{why}; say an https:// address in providers.{self.name}.url")
        return replace(offer, capacity=self._executors, boot_s=0)

    def _check(self, offer: Offer) -> None:
        live = [
            tag
            for tag in self._machines.tags()
            if self._machines.look(tag).phase in ("starting", "running")
            and self._machines.notes(tag)["offer"] == str(offer.key)
        ]
        if len(live) >= self._executors:
            raise NoCapacity(f"offer {offer.key}: {', '.join(live)} buy there already, executors = {self._executors}")


def _is_private(url: str) -> bool:
    """Whether nobody on the way can read what is sent there: TLS, or this machine itself."""
    there = urlsplit(url)
    return there.scheme == "https" or (there.scheme == "http" and there.hostname in ("127.0.0.1", "::1", "localhost"))
