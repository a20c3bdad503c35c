"""The provider behind the HTTP API: it writes each decision into its journal, then acts; after a crash it goes on."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

import structlog

from markets.errors import Ambiguous, StillReleasing
from markets.machine import Machine, Machines, write_whole
from markets.market import MachineStart
from markets.sandbox.catalogue import Catalogue, CatalogueOffer
from markets.sandbox.journal import Event, Journal
from markets.sandbox.state import Instance, State, apply, end_reason

_log = structlog.get_logger("sandbox")


class Refused(Exception):
    """The provider will not do it. `code` is the API's error code, `status` its HTTP status."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Provider:
    """Instances on this machine. `folder` holds journal.jsonl and machines/; only one process may have it open."""

    def __init__(self, folder: Path, catalogue: Catalogue) -> None:
        self._catalogue = {offer.id: offer for offer in catalogue.offers}
        self._machines = Machines(folder / "machines")
        self._journal = Journal(folder / "journal.jsonl")
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._doom_us: dict[str, int] = {}
        self.state = State()
        for event in self._journal.events():
            apply(self.state, event)

    def offers(self) -> list[tuple[CatalogueOffer, Decimal, int]]:
        """Every offer with its price now and how many can be had now."""
        taken: dict[str, int] = defaultdict(int)
        for instance in self.state.live():
            taken[instance.offer] += 1
        return [
            (offer, self.price(offer), max(0, self.state.capacities.get(offer.id, offer.capacity) - taken[offer.id]))
            for offer in self._catalogue.values()
        ]

    def price(self, offer: CatalogueOffer) -> Decimal:
        return self.state.prices.get(offer.id, offer.price)

    def offer(self, offer_id: str) -> CatalogueOffer:
        """The catalogue's entry. Raises Refused(404)."""
        if offer_id not in self._catalogue:
            raise Refused(404, "offer_not_found", f"there is no offer {offer_id!r}; see GET /v1/offers")
        return self._catalogue[offer_id]

    def tagged(self, tag: str) -> Instance | None:
        instance_id = self.state.by_tag.get(tag)
        return None if instance_id is None else self.state.instances[instance_id]

    def instance(self, instance_id: str) -> Instance:
        """Raises Refused(404)."""
        if instance_id not in self.state.instances:
            raise Refused(404, "instance_not_found", f"there is no instance {instance_id!r}")
        return self.state.instances[instance_id]

    async def create(self, *, tag: str, owner: str, offer_id: str, max_price: Decimal, start: MachineStart) -> Instance:
        """A new instance; the tag must be new. Raises Refused: sold out, dearer than `max_price`, or price unknown."""
        offer = self.offer(offer_id)
        async with self._locks[tag]:
            if (there := self.tagged(tag)) is not None:
                return there
            self._check(offer, max_price)
            # Files first: when the journal has the instance, a restarted sandbox can boot it.
            self._machines.lay(tag, start, {"owner": owner})
            now_us = clock_us()
            self._record(
                {
                    "event": "created",
                    "id": f"i-{len(self.state.instances) + 1:08d}",
                    "tag": tag,
                    "owner": owner,
                    "offer": offer.id,
                    "price": str(self.price(offer)),
                    "granularity_s": offer.granularity_s,
                    "minimum_s": offer.minimum_s,
                    "boot_us": now_us + offer.boot_s * 1_000_000,
                    "at_us": now_us,
                }
            )
        instance_id = self.state.by_tag[tag]
        await self.advance(instance_id)
        return self.state.instances[instance_id]

    async def release(self, instance_id: str, *, slow_s: float = 0) -> Instance:
        """Ask for its end; the answer's state says whether it has come. Asking again changes nothing."""
        instance = self.instance(instance_id)
        if instance.state in ("pending", "running"):
            now_us = clock_us()
            at_us = now_us + int(slow_s * 1_000_000)
            self._record({"event": "release_asked", "id": instance_id, "at_us": now_us, "release_at_us": at_us})
        await self.advance(instance_id)
        return self.instance(instance_id)

    async def preempt(self, instance_id: str, *, notice_s: float) -> Instance:
        """Take the machine away in `notice_s` seconds; 0: now, without a word. An earlier date is never put off."""
        instance = self.instance(instance_id)
        if instance.ended_us is None and instance.kill_at_us is None:
            now_us = clock_us()
            self._record(
                {
                    "event": "preemption",
                    "id": instance_id,
                    "at_us": now_us,
                    "kill_at_us": now_us + int(notice_s * 1_000_000),
                    "noticed": notice_s > 0,
                }
            )
        await self.advance(instance_id)
        return self.instance(instance_id)

    def reprice(self, offer_id: str, price: Decimal) -> None:
        self._record({"event": "repriced", "offer": offer_id, "price": str(price), "at_us": clock_us()})

    def restock(self, offer_id: str, capacity: int) -> None:
        self._record({"event": "restocked", "offer": offer_id, "capacity": capacity, "at_us": clock_us()})

    def refresh(self) -> None:
        """Notice machines that ended by themselves."""
        for instance in self.state.live():
            if instance.started_us is not None:
                self._note_end(instance, self._machines.look(instance.tag))

    async def advance_all(self) -> None:
        """One step for every live instance: boot, notice, end what is due. Also what a restart goes on with."""
        self.refresh()
        for instance in self.state.live():
            await self._tempt_fate(instance)
            await self.advance(instance.id)

    async def advance(self, instance_id: str) -> None:
        """Do what is due for one instance now."""
        async with self._locks[instance_id]:
            instance = self.state.instances[instance_id]
            if instance.ended_us is None:
                due_us = instance.due_us()
                if due_us is not None and due_us <= clock_us():
                    await self._end(instance)
                elif instance.started_us is None:
                    await self._boot(instance)
                elif instance.noticed:
                    self._tell(instance)

    async def end_all(self) -> None:
        """The provider closes: every machine is taken away and metered."""
        for instance in self.state.live():
            await self.preempt(instance.id, notice_s=0)

    def close(self) -> None:
        self._journal.close()

    def facts(self, instance: Instance) -> Path:
        """Where the machine's records and logs are."""
        return self._machines.folder(instance.tag)

    def _check(self, offer: CatalogueOffer, max_price: Decimal) -> None:
        price = self.price(offer)
        if price <= 0:
            raise Refused(409, "price_unknown", f"offer {offer.id} has no price; it cannot be rented")
        if price > max_price:
            raise Refused(409, "price_moved", f"offer {offer.id} costs {price} USD/h now, more than {max_price}")
        available = {each.id: left for each, _, left in self.offers()}[offer.id]
        if available == 0:
            raise Refused(409, "sold_out", f"offer {offer.id} is sold out")

    async def _boot(self, instance: Instance) -> None:
        if clock_us() < instance.boot_us:
            return
        try:
            machine = await self._machines.launch(instance.tag)
        except Ambiguous as error:
            _log.warning("sandbox.boot_stuck", instance=instance.id, error=str(error))
            return
        self._note_start(instance, machine)

    def _note_start(self, instance: Instance, machine: Machine) -> None:
        if machine.started_us is not None:
            at_us, pid = machine.started_us, machine.pid
            self._record({"event": "started", "id": instance.id, "pid": pid, "at_us": at_us})
        self._note_end(self.state.instances[instance.id], machine)

    def _note_end(self, instance: Instance, machine: Machine) -> None:
        if machine.phase not in ("ended", "absent") or instance.ended_us is not None:
            return
        ended_us = max(machine.ended_us or clock_us(), instance.started_us or 0)
        self._record_end(instance, ended_us, machine.exit_status)

    async def _end(self, instance: Instance) -> None:
        """Kill it, and note the end once nothing of it is left."""
        machine = self._machines.look(instance.tag)
        if machine.phase in ("absent", "laid"):
            self._record_end(instance, clock_us(), None)
            return
        try:
            machine = await self._machines.kill(instance.tag)
        except StillReleasing as error:
            _log.warning("sandbox.kill_stuck", instance=instance.id, error=str(error))
            return
        instance = self.state.instances[instance.id]  # its end may have been noted meanwhile
        if instance.started_us is None:
            self._note_start(instance, machine)
        else:
            self._note_end(instance, machine)

    def _tell(self, instance: Instance) -> None:
        """The notice, where the machine can read it: notice.json in its own folder, `at` in seconds since 1970."""
        notice = self._machines.disk(instance.tag) / "notice.json"
        if instance.kill_at_us is not None and not notice.exists():
            write_whole(notice, json.dumps({"at": instance.kill_at_us / 1_000_000}).encode())

    async def _tempt_fate(self, instance: Instance) -> None:
        """Preempt at the offer's hazard if the catalogue says so. Memoryless: a restart may draw anew."""
        offer = self._catalogue.get(instance.offer)
        if offer is None or not offer.preempt or not offer.hazard or instance.started_us is None:
            return
        if instance.id not in self._doom_us:
            hours = random.expovariate(float(offer.hazard))  # chance, not money
            self._doom_us[instance.id] = clock_us() + int(hours * 3_600_000_000)
        if self._doom_us[instance.id] <= clock_us():
            await self.preempt(instance.id, notice_s=offer.notice_s)

    def _record_end(self, instance: Instance, ended_us: int, exit_status: int | None) -> None:
        reason = end_reason(instance, ended_us, exit_status)
        self._record(
            {"event": "ended", "id": instance.id, "at_us": ended_us, "reason": reason, "exit_status": exit_status}
        )
        self._doom_us.pop(instance.id, None)

    def _record(self, event: Event) -> None:
        self._journal.append(event)
        apply(self.state, event)
        facts = {name: value for name, value in event.items() if name != "event"}
        _log.info(f"sandbox.{event['event']}", **facts)


def clock_us() -> int:
    """The provider's clock, microseconds UTC."""
    return time.time_ns() // 1000
