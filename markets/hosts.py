"""Own hosts over SSH as a market: `docker run` on machines that are ours, at the price that their owner says.

What a rental cost is computed from the host's own records, on the host's own clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TypeVar

import structlog

from markets import docker_shell
from markets.docker_run import Docker
from markets.docker_shell import Container
from markets.errors import (
    Ambiguous,
    MarketsError,
    NoCapacity,
    NotAuthorized,
    PartialList,
    PriceMoved,
    RentalNotFound,
    StillReleasing,
    Unavailable,
)
from markets.instants import micros
from markets.market import Charge, Intent, Released, Rental
from markets.meter import Terms, amount, billed_seconds
from markets.offer import Accelerator, AcceleratorKind, Evidence, Offer, OfferKey, quarantine, raw_digest
from markets.ssh import Authority, Broken, Completed, Connection, Target, Timeouts

GRANULARITY_S = 1
BOOT_S = 5
TIDY_AFTER = timedelta(minutes=2)

_log = structlog.get_logger("markets.hosts")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OwnHost:
    """One host: where it is, what it is worth per hour and slot, what computes there, how containers run on it."""

    target: Target
    price: Decimal
    country: str
    slots: int = 1
    accelerator: Accelerator = field(default_factory=Accelerator)
    docker: Docker = field(default_factory=Docker)
    components: Mapping[str, Decimal] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def key(self) -> OfferKey:
        chip = self.accelerator
        return OfferKey("hosts", None, None, self.name, chip.name, chip.count, "on_demand")


def accelerator_of(name: str, *, count: int, memory_mib: int, kind: AcceleratorKind | None = None) -> Accelerator:
    """An accelerator from what an operator writes down; with devices and no other word it is NVIDIA's."""
    return Accelerator(kind=kind or ("nvidia" if count else "none"), name=name, memory_mib=memory_mib, count=count)


class HostsMarket:
    """The market `hosts`. `authority` logs us in (its `trust_line` must be on each host)."""

    name = "hosts"

    def __init__(
        self, hosts: Sequence[OwnHost], *, authority: Authority, owner: str, timeouts: Timeouts | None = None
    ) -> None:
        if len({host.name for host in hosts}) < len(hosts):
            raise ValueError(f"own hosts {[host.name for host in hosts]}: two have one name; names are identities")
        self._timeouts = timeouts or Timeouts()
        self._hosts = {host.name: host for host in hosts}
        self._connections = {host.name: Connection(host.target, authority, self._timeouts) for host in hosts}
        self._owner = owner
        self._pool = ThreadPoolExecutor(max_workers=2 * len(hosts) + 1, thread_name_prefix="hosts")
        self._renting = {host.name: asyncio.Lock() for host in hosts}

    async def offers(self) -> list[Offer]:
        """One a host; a host that does not answer is listed with the reason and never chosen."""
        return list(await asyncio.gather(*(self._offer(host) for host in self._hosts.values())))

    async def rent(self, offer: Offer, intent: Intent) -> Rental:
        """`docker run`, once for a tag. NoCapacity also carries docker's own words when it refuses to start it."""
        host = self._host(offer.key.sku)
        if host.price > intent.max_price:
            raise PriceMoved(
                f"offer {host.key}: costs {host.price} USD/h now, more than the {intent.max_price} planned with"
            )
        async with self._renting[host.name]:
            room = await self._room(host, intent.tag)
            if not room.there:
                if room.live >= host.slots:
                    raise NoCapacity(f"offer {host.key}: all {host.slots} slots are taken")
                await self._start(host, intent, room.home)
        try:
            found = await self._list_or_unavailable(host, tag=intent.tag)
        except (Unavailable, NotAuthorized) as error:
            raise Ambiguous(f"{intent.tag} was started, but then: {error}") from error
        if not found:
            raise Ambiguous(f"host {host.name}: {intent.tag} was started and cannot be seen")
        _log.info("hosts.rented", rental=intent.tag, host=host.name, container=found[0].id)
        return self._rental(host, found[0])

    async def rental(self, tag: str) -> Rental:
        """Asked of every host. Unavailable: no host that answers has it, and one does not answer."""
        host, container = await self._find(tag)
        return self._rental(host, container)

    async def rentals(self) -> list[Rental]:
        """Of all hosts, or PartialList naming those that do not answer, with the rentals of the others.

        Clears away containers that ended by themselves.
        """
        answers = await asyncio.gather(*(self._answer(host) for host in self._hosts.values()))
        failures = [error for _, _, error in answers if error is not None]
        found = [(host, container) for host, containers, _ in answers for container in containers]
        await asyncio.gather(*(self._tidy(host, container) for host, container in found))
        rentals = [self._rental(host, container) for host, container in found]
        if failures:
            raise PartialList("; ".join(str(error) for error in failures), found=rentals)
        return rentals

    async def release(self, tag: str) -> Released:
        """Kill, record the end, remove. StillReleasing: docker has not said that it is over, or the host went away."""
        host, container = await self._find(tag)
        if not container.removed:
            await self._end(host, tag)
            found = await self._list_or_unavailable(host, tag=tag)
            if not found or found[0].ended_at is None:
                raise StillReleasing(f"host {host.name}: {tag} has no recorded end yet")
            container = found[0]
            _log.info("hosts.released", rental=tag, host=host.name, exit_status=container.exit_status)
        if container.ended_at is None:
            raise StillReleasing(f"host {host.name}: {tag} has no recorded end yet")
        return Released(tag=tag, at=container.ended_at)

    async def charges(self, from_at: datetime, to_at: datetime) -> list[Charge]:
        """By the hosts' records: whole rentals that overlap the period. Unavailable when a host does not answer."""
        charges = []
        for host in self._hosts.values():
            for container in await self._list_or_unavailable(host, all_ends=True):
                charge = _charge(host, container)
                if charge is not None and charge.from_at < to_at and charge.to_at > from_at:
                    charges.append(charge)
        return charges

    async def close(self) -> None:
        """Close connections and threads. Containers go on."""
        for connection in self._connections.values():
            await asyncio.get_running_loop().run_in_executor(self._pool, connection.close)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _host(self, name: str) -> OwnHost:
        if name not in self._hosts:
            raise NoCapacity(f"host {name!r} is no longer configured")
        return self._hosts[name]

    async def _offer(self, host: OwnHost) -> Offer:
        now = datetime.fromtimestamp(int(time.time()), UTC)
        live, problem = host.slots, None
        try:
            live = (await self._room(host, None)).live
        except (Unavailable, NotAuthorized) as error:
            problem = str(error)
        offer = Offer(
            key=host.key,
            launch="container",
            accelerator=host.accelerator,
            currency="USD",
            price=host.price,
            components=host.components,
            raw={name: f"{amount} USD per hour and slot" for name, amount in host.components.items()},
            observed_at=now,
            source="setting own.hosts",
            raw_sha256=raw_digest({"name": host.name, "usd_per_hour": str(host.price), "country": host.country}),
            capacity=max(0, host.slots - live),
            granularity_s=GRANULARITY_S,
            interruption_per_hour=Decimal(0),
            boot_s=BOOT_S,
            country=host.country,
            evidence=(Evidence("operator_statement", "setting own.hosts", now, timedelta(days=1)),),
            location_tier="verified_host",
            confidentiality="dedicated",
            operator="self",
            jurisdictions=(host.country,),
        )
        return quarantine(offer, problem) if problem else offer

    async def _room(self, host: OwnHost, tag: str | None) -> docker_shell.Room:
        completed = await self._ask(host, docker_shell.room_script(host.docker, tag))
        if completed.status != 0:
            raise Unavailable(f"host {host.name}: {completed.err.strip() or completed.status}")
        try:
            return docker_shell.room(completed.out)
        except ValueError as error:
            raise Unavailable(f"host {host.name}: docker does not answer: {completed.err.strip()}") from error

    async def _start(self, host: OwnHost, intent: Intent, home: str) -> None:
        connection, tag, start = self._connections[host.name], intent.tag, intent.start
        script = docker_shell.run_script(
            host.docker,
            tag=tag,
            owner=self._owner,
            price=host.price,
            start=start,
            home=home,
            accelerator=host.accelerator,
        )
        await self._in_thread(lambda: connection.put(f"{home}/{tag}/files", start.files))
        try:
            completed = await self._in_thread(lambda: connection.run(script, timeout_s=self._timeouts.run_s))
        except Broken as error:
            raise Ambiguous(f"{tag} may or may not have been started: {error}") from error
        if completed.status == docker_shell.UNCLEAN:
            raise Ambiguous(f"host {host.name}: docker failed and may have left {tag}: {completed.err.strip()}")
        if completed.status not in (0, docker_shell.NAME_TAKEN):
            raise NoCapacity(f"host {host.name}: docker does not start {tag}: {completed.err.strip()}")

    async def _end(self, host: OwnHost, tag: str) -> None:
        script, connection = docker_shell.end_script(host.docker, tag), self._connections[host.name]
        try:
            completed = await self._in_thread(lambda: connection.run(script))
        except Broken as error:
            raise StillReleasing(f"{tag}: {error}") from error
        if completed.status != 0:
            raise StillReleasing(f"host {host.name}: docker has not ended {tag}: {completed.err.strip()}")

    async def _tidy(self, host: OwnHost, container: Container) -> None:
        """What ended by itself takes disk until its container is removed; its record stays."""
        if container.removed or container.ended_at is None or container.seen_at - container.ended_at < TIDY_AFTER:
            return
        try:
            await self._end(host, container.tag)
        except (StillReleasing, Unavailable, NotAuthorized) as error:
            _log.warning("hosts.untidy", rental=container.tag, host=host.name, error=str(error))

    async def _find(self, tag: str) -> tuple[OwnHost, Container]:
        answers = await asyncio.gather(*(self._answer(host, tag=tag) for host in self._hosts.values()))
        for host, containers, _ in answers:
            if containers:
                return host, containers[0]
        failures = [str(error) for _, _, error in answers if error is not None]
        if failures:
            raise Unavailable(f"{tag} is on no host that answers; not asked: {'; '.join(failures)}")
        raise RentalNotFound(f"no own host has {tag!r}")

    async def _answer(
        self, host: OwnHost, *, tag: str | None = None
    ) -> tuple[OwnHost, list[Container], MarketsError | None]:
        try:
            return host, await self._list_or_unavailable(host, tag=tag), None
        except (Unavailable, NotAuthorized) as error:
            return host, [], error

    async def _list_or_unavailable(
        self, host: OwnHost, *, tag: str | None = None, all_ends: bool = False
    ) -> list[Container]:
        script = docker_shell.list_script(host.docker, self._owner, tag=tag, all_ends=all_ends)
        completed = await self._ask(host, script)
        if completed.status != 0:
            raise Unavailable(f"host {host.name}: docker does not answer: {completed.err.strip()}")
        try:
            return docker_shell.containers(completed.out, self._owner)
        except (ValueError, KeyError) as error:
            raise Unavailable(f"host {host.name}: docker's answer cannot be read: {error!r}") from error

    async def _ask(self, host: OwnHost, script: str) -> Completed:
        """A question that may be asked again."""
        connection = self._connections[host.name]
        try:
            return await self._in_thread(lambda: connection.run(script))
        except Broken as error:
            raise Unavailable(str(error)) from error

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _rental(self, host: OwnHost, container: Container) -> Rental:
        facts = {"owner": container.owner, "host": host.name, "container": container.id, "pid": str(container.pid)}
        if container.error:
            facts["error"] = container.error
        return Rental(
            tag=container.tag,
            offer_key=host.key,
            state=container.state,
            price=container.price,
            currency="USD",
            started_at=container.started_at,
            ended_at=container.ended_at,
            seen_at=container.seen_at,
            end_reason=container.end_reason,
            exit_status=container.exit_status,
            facts=facts,
        )


def _charge(host: OwnHost, container: Container) -> Charge | None:
    if container.started_at is None:
        return None
    until, final = container.ended_at or container.seen_at, container.ended_at is not None
    terms = Terms(container.price, GRANULARITY_S, 0)
    seconds = billed_seconds(terms, micros(container.started_at), micros(until), final=final)
    return Charge(
        tag=container.tag,
        offer_key=host.key,
        from_at=container.started_at,
        to_at=until,
        seconds=seconds,
        amount=amount(terms, seconds),
        currency="USD",
        final=final,
    )
