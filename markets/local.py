"""This machine as a market: at the hourly price that its owner says it is worth, metered by its own records.

All state is in the folder of the market: what runs is found again after the broker was killed at any point.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import structlog

from markets.errors import NoCapacity, PriceMoved
from markets.instants import micros, moment
from markets.machine import Machines
from markets.market import Charge, Intent, Released, Rental
from markets.meter import Terms, amount, billed_seconds
from markets.offer import Accelerator, Evidence, Offer, OfferKey, raw_digest
from markets.processes import Processes

GRANULARITY_S = 1
KEY = OfferKey("local", None, None, "this-machine", "cpu", 0, "on_demand")

_log = structlog.get_logger("markets.local")


class LocalMarket:
    """One offer with `slots` places; a rental is a process with its folder (`markets.machine`).

    `price` is USD per hour and slot. `country` is the operator's word for where this machine stands, None is unknown.
    """

    name = "local"

    def __init__(self, folder: Path, *, owner: str, price: Decimal, country: str | None = None, slots: int = 1) -> None:
        if not price.is_finite() or price <= 0:
            raise ValueError(f"local price {price} USD/h is not positive; set local.usd_per_hour")
        self._folder = folder
        self._owner = owner
        self._price = price
        self._country = country
        self._slots = slots
        self._machines = Machines(folder)
        self._processes = Processes(self._machines, self.name, owner, lambda _: KEY)
        self._renting = asyncio.Lock()

    async def offers(self) -> list[Offer]:
        """This machine, once; capacity is the slots that are free."""
        now = moment(_now_us())
        evidence = (Evidence("operator_statement", "setting local.country", now, timedelta(days=1)),)
        stated = {"usd_per_hour": str(self._price), "country": self._country, "slots": self._slots}
        return [
            Offer(
                key=KEY,
                launch="process",
                accelerator=Accelerator(),
                currency="USD",
                price=self._price,
                observed_at=now,
                source="setting local.usd_per_hour",
                raw_sha256=raw_digest(stated),
                raw={"price": f"{self._price} USD per hour and process (setting local.usd_per_hour)"},
                capacity=max(0, self._slots - len(await asyncio.to_thread(self._live))),
                granularity_s=GRANULARITY_S,
                interruption_per_hour=Decimal(0),
                boot_s=0,
                country=self._country,
                evidence=evidence if self._country else (),
                location_tier="verified_host",
                confidentiality="dedicated",
                operator="self",
                jurisdictions=(self._country,) if self._country else None,
            )
        ]

    async def rent(self, offer: Offer, intent: Intent) -> Rental:
        """Start the process. NoCapacity, PriceMoved: nothing was started. Ambiguous: it did not start in time."""
        async with self._renting:
            if self._machines.look(intent.tag).phase in ("absent", "laid"):
                await asyncio.to_thread(self._check, intent)
                notes = {"owner": self._owner, "price": str(self._price), "created_us": _now_us()}
                await asyncio.to_thread(self._machines.lay, intent.tag, intent.start, notes)
            machine = await self._machines.launch(intent.tag)
        _log.info("local.rented", rental=intent.tag, pid=machine.pid)
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
        """What this machine cost by its own records: whole rentals that overlap the period."""
        charges = [self._charge(rental) for rental in await self._processes.listed(after_end=None)]
        return [each for each in charges if each is not None and each.from_at < to_at and each.to_at > from_at]

    async def close(self) -> None:
        """Nothing to give back. Rentals go on."""

    def _check(self, intent: Intent) -> None:
        if self._price > intent.max_price:
            raise PriceMoved(
                f"offer {KEY}: costs {self._price} USD/h now, more than the {intent.max_price} planned with"
            )
        live = self._live()
        if len(live) >= self._slots:
            raise NoCapacity(f"offer {KEY}: all {self._slots} slots are taken, by {', '.join(live)}")

    def _live(self) -> list[str]:
        """Tags of whoever takes a slot; other owners' processes in this folder take one too."""
        return [tag for tag in self._machines.tags() if self._machines.look(tag).phase in ("starting", "running")]

    def _charge(self, rental: Rental) -> Charge | None:
        if rental.started_at is None:
            return None
        until, final = rental.ended_at or rental.seen_at, rental.ended_at is not None
        terms = Terms(rental.price, GRANULARITY_S, 0)
        seconds = billed_seconds(terms, micros(rental.started_at), micros(until), final=final)
        return Charge(
            tag=rental.tag,
            offer_key=rental.offer_key,
            from_at=rental.started_at,
            to_at=until,
            seconds=seconds,
            amount=amount(terms, seconds),
            currency=rental.currency,
            final=final,
        )


def _now_us() -> int:
    return time.time_ns() // 1000
