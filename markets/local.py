"""This machine as a market: at the hourly price that its owner says it is worth, metered by its own records.

All state is in the folder of the market: what runs is found again after the broker was killed at any point.
"""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import structlog

from markets.errors import NoCapacity, PriceMoved, RentalNotFound
from markets.instants import maybe_moment, micros, moment
from markets.machine import Machine, Machines, write_whole
from markets.market import Charge, EndReason, Intent, Released, Rental, RentalState
from markets.meter import Terms, amount, billed_seconds
from markets.offer import Accelerator, Evidence, Offer, OfferKey, raw_digest

GRANULARITY_S = 1
LISTED_AFTER_END = timedelta(hours=2)
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
        return self._rental(machine)

    async def rental(self, tag: str) -> Rental:
        """As the records say now. RentalNotFound: no process was ever started under this tag."""
        return self._rental(self._known(tag))

    async def rentals(self) -> list[Rental]:
        """All of our owner, ended ones for two hours after their end."""
        return await asyncio.to_thread(self._all, LISTED_AFTER_END)

    async def release(self, tag: str) -> Released:
        """Kill the whole process group. StillReleasing: something of it is still there."""
        machine = self._known(tag)
        if machine.phase != "ended":
            asked = self._machines.folder(tag) / "release.json"
            write_whole(asked, json.dumps({"asked_us": _now_us()}).encode(), replace=False)
            machine = await self._machines.kill(tag)
            _log.info("local.released", rental=tag, exit_status=machine.exit_status)
        return Released(tag=tag, at=moment(_ended_us(machine)))

    async def charges(self, from_at: datetime, to_at: datetime) -> list[Charge]:
        """What this machine cost by its own records: whole rentals that overlap the period."""
        rentals = await asyncio.to_thread(self._all, None)
        charges = [self._charge(rental) for rental in rentals]
        return [each for each in charges if each is not None and each.from_at < to_at and each.to_at > from_at]

    async def close(self) -> None:
        """Nothing to give back. Rentals go on."""

    def _known(self, tag: str) -> Machine:
        machine = self._machines.look(tag)
        if machine.phase in ("absent", "laid") or self._machines.notes(tag)["owner"] != self._owner:
            raise RentalNotFound(f"local: no process was started under tag {tag!r} in {self._folder}")
        return machine

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

    def _all(self, listed_after_end: timedelta | None) -> list[Rental]:
        found = []
        oldest = None if listed_after_end is None else moment(_now_us()) - listed_after_end
        for tag in self._machines.tags():
            machine = self._machines.look(tag)
            if machine.phase == "laid" or self._machines.notes(tag)["owner"] != self._owner:
                continue
            rental = self._rental(machine)
            if oldest is None or rental.ended_at is None or rental.ended_at > oldest:
                found.append(rental)
        return found

    def _rental(self, machine: Machine) -> Rental:
        notes, folder = self._machines.notes(machine.tag), self._machines.folder(machine.tag)
        facts = {"owner": notes["owner"], "pid": str(machine.pid or ""), "folder": str(folder)}
        if machine.error:
            facts["error"] = machine.error
        ended = machine.phase == "ended"
        return Rental(
            tag=machine.tag,
            offer_key=KEY,
            state=self._state(machine),
            price=Decimal(notes["price"]),
            currency="USD",
            started_at=maybe_moment(machine.started_us),
            ended_at=moment(_ended_us(machine)) if ended else None,
            seen_at=moment(machine.seen_us),
            end_reason=self._end_reason(machine) if ended else None,
            exit_status=machine.exit_status,
            facts=facts,
        )

    def _state(self, machine: Machine) -> RentalState:
        if machine.phase == "ended":
            return "ended"
        if self._asked(machine.tag):
            return "releasing"
        return "running" if machine.phase == "running" else "pending"

    def _end_reason(self, machine: Machine) -> EndReason:
        if self._asked(machine.tag):
            return "released"
        return "exited" if machine.exit_status == 0 else "failed"

    def _asked(self, tag: str) -> bool:
        return (self._machines.folder(tag) / "release.json").exists()

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


def _ended_us(machine: Machine) -> int:
    """The recorded end; never before the start, should the clock have been set back in between."""
    return max(machine.ended_us or 0, machine.started_us or 0)


def _now_us() -> int:
    return time.time_ns() // 1000
