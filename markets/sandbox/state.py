"""What the journal's events add up to. `apply` is the whole of the sandbox's memory: same events, same state."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from markets.meter import Terms, amount, billed_seconds
from markets.sandbox.journal import Event

InstanceState = Literal["pending", "running", "releasing", "ended"]
EndReason = Literal["released", "preempted", "exited", "failed"]


@dataclass(frozen=True, slots=True)
class Instance:
    """One rented machine with the terms of its contract, frozen at creation. Times are microseconds UTC.

    `boot_us`: when the process is to start. `release_at_us`: when a release that was asked for takes effect.
    `kill_at_us`: when the provider takes the machine away; `noticed`: whether it is told so.
    """

    id: str
    tag: str
    owner: str
    offer: str
    price: Decimal
    granularity_s: int
    minimum_s: int
    created_us: int
    boot_us: int
    started_us: int | None = None
    pid: int | None = None
    release_us: int | None = None
    release_at_us: int | None = None
    kill_at_us: int | None = None
    noticed: bool = False
    ended_us: int | None = None
    end_reason: EndReason | None = None
    exit_status: int | None = None

    @property
    def state(self) -> InstanceState:
        if self.ended_us is not None:
            return "ended"
        if self.release_us is not None:
            return "releasing"
        return "pending" if self.started_us is None else "running"

    @property
    def terms(self) -> Terms:
        return Terms(self.price, self.granularity_s, self.minimum_s)

    def due_us(self) -> int | None:
        """When the provider must end it, by release or preemption, whichever comes first."""
        return min((at for at in (self.release_at_us, self.kill_at_us) if at is not None), default=None)


@dataclass(slots=True)
class State:
    """Instances by id (in order of creation) and by tag, and what was changed of the catalogue since it was written."""

    instances: dict[str, Instance] = field(default_factory=dict)
    by_tag: dict[str, str] = field(default_factory=dict)
    prices: dict[str, Decimal] = field(default_factory=dict)
    capacities: dict[str, int] = field(default_factory=dict)

    def live(self) -> list[Instance]:
        return [each for each in self.instances.values() if each.ended_us is None]


def apply(state: State, event: Event) -> None:
    """Take `event` into account. Raises KeyError for an event of an instance that was never created."""
    match event["event"]:
        case "created":
            instance = Instance(
                id=event["id"],
                tag=event["tag"],
                owner=event["owner"],
                offer=event["offer"],
                price=Decimal(event["price"]),
                granularity_s=event["granularity_s"],
                minimum_s=event["minimum_s"],
                created_us=event["at_us"],
                boot_us=event["boot_us"],
            )
            state.instances[instance.id] = instance
            state.by_tag[instance.tag] = instance.id
        case "repriced":
            state.prices[event["offer"]] = Decimal(event["price"])
        case "restocked":
            state.capacities[event["offer"]] = event["capacity"]
        case _:
            before = state.instances[event["id"]]
            state.instances[before.id] = _after(before, event)


def _after(instance: Instance, event: Event) -> Instance:
    match event["event"]:
        case "started":
            return replace(instance, started_us=event["at_us"], pid=event["pid"])
        case "release_asked":
            return replace(instance, release_us=event["at_us"], release_at_us=event["release_at_us"])
        case "preemption":
            return replace(instance, kill_at_us=event["kill_at_us"], noticed=event["noticed"])
        case "ended":
            reason, status = event["reason"], event["exit_status"]
            return replace(instance, ended_us=event["at_us"], end_reason=reason, exit_status=status)
        case other:
            raise ValueError(f"journal event {other!r} is unknown to this version")


def end_reason(instance: Instance, ended_us: int, exit_status: int | None) -> EndReason:
    """Why it ended: taken away by the provider, given back, or by itself (well or not)."""
    if instance.kill_at_us is not None and ended_us >= instance.kill_at_us:
        return "preempted"
    if instance.release_us is not None:
        return "released"
    return "exited" if exit_status == 0 else "failed"


@dataclass(frozen=True, slots=True)
class Metered:
    """What is billed of one instance up to `until_us`."""

    instance: Instance
    until_us: int
    seconds: int
    amount: Decimal
    final: bool


def metered(instance: Instance, now_us: int) -> Metered | None:
    """The meter of `instance`; None for one that never started: it costs nothing."""
    if instance.started_us is None:
        return None
    final = instance.ended_us is not None
    until_us = now_us if instance.ended_us is None else instance.ended_us
    seconds = billed_seconds(instance.terms, instance.started_us, until_us, final=final)
    return Metered(instance, until_us, seconds, amount(instance.terms, seconds), final)
