"""Rentals that are processes of this machine: what their folders say of them, listed and ended, for whichever market rents them.

All state is in the folder of `machines`: what runs is found again after the broker was killed at any point.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import structlog

from markets.errors import RentalNotFound
from markets.instants import maybe_moment, moment
from markets.machine import Machine, Machines, write_whole
from markets.market import EndReason, Released, Rental, RentalState
from markets.offer import OfferKey

LISTED_AFTER_END = timedelta(hours=2)
_log = structlog.get_logger("markets.processes")


@dataclass(frozen=True, slots=True)
class Processes:
    """Those of one owner at one market. A machine's notes name its `owner` and its `price` in USD an hour; `offer_of` says
    from them which offer it was rented as."""

    machines: Machines
    market: str
    owner: str
    offer_of: Callable[[Mapping[str, Any]], OfferKey]

    def known(self, tag: str) -> Machine:
        """Raises RentalNotFound: no process was ever started under this tag."""
        machine = self.machines.look(tag)
        if machine.phase in ("absent", "laid") or self.machines.notes(tag)["owner"] != self.owner:
            raise RentalNotFound(
                f"{self.market}: no process was started under tag {tag!r} in {self.machines.folder(tag).parent}"
            )
        return machine

    async def listed(self, after_end: timedelta | None = LISTED_AFTER_END) -> list[Rental]:
        """All; ended ones for so long after their end, for ever where it is None."""
        return await asyncio.to_thread(self._listed, after_end)

    async def release(self, tag: str) -> Released:
        """Kill the whole process group. Raises StillReleasing: something of it is still there."""
        machine = self.known(tag)
        if machine.phase != "ended":
            asked = json.dumps({"asked_us": time.time_ns() // 1000}).encode()
            write_whole(self._asked_file(tag), asked, replace=False)
            machine = await self.machines.kill(tag)
            _log.info("process.released", market=self.market, rental=tag, exit_status=machine.exit_status)
        return Released(tag=tag, at=moment(_ended_us(machine)))

    def rental(self, machine: Machine) -> Rental:
        """As its records say now."""
        notes, folder = self.machines.notes(machine.tag), self.machines.folder(machine.tag)
        facts = {"owner": notes["owner"], "pid": str(machine.pid or ""), "folder": str(folder)}
        if machine.error:
            facts["error"] = machine.error
        ended = machine.phase == "ended"
        return Rental(
            tag=machine.tag,
            offer_key=self.offer_of(notes),
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

    def _listed(self, after_end: timedelta | None) -> list[Rental]:
        found = []
        oldest = None if after_end is None else moment(time.time_ns() // 1000) - after_end
        for tag in self.machines.tags():
            machine = self.machines.look(tag)
            if machine.phase == "laid" or self.machines.notes(tag)["owner"] != self.owner:
                continue
            rental = self.rental(machine)
            if oldest is None or rental.ended_at is None or rental.ended_at > oldest:
                found.append(rental)
        return found

    def _state(self, machine: Machine) -> RentalState:
        if machine.phase == "ended":
            return "ended"
        if self._asked_file(machine.tag).exists():
            return "releasing"
        return "running" if machine.phase == "running" else "pending"

    def _end_reason(self, machine: Machine) -> EndReason:
        if self._asked_file(machine.tag).exists():
            return "released"
        return "exited" if machine.exit_status == 0 else "failed"

    def _asked_file(self, tag: str) -> Path:
        return self.machines.folder(tag) / "release.json"


def _ended_us(machine: Machine) -> int:
    """The recorded end; never before the start, should the clock have been set back in between."""
    return max(machine.ended_us or 0, machine.started_us or 0)
