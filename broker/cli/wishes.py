"""What `submit` and `quote` may wish for, beyond what OpenAI's request can say: one group of options for both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import typer

from broker.cli.exits import USAGE, Failure

Document = dict[str, Any]
# The words of broker/api/shapes.py, which the commands do not load; a test holds the two beside each other.
DataClass = Literal["public", "internal", "confidential", "personal", "health", "secret"]
Confidentiality = Literal["none", "at_rest", "dedicated", "cpu_tee", "gpu_tee"]
Order = Literal["input", "completion"]


@dataclass(frozen=True)
class Wishes:
    """What the options said, checked, as the API wants it: the window (None: not said), and `x_broker`."""

    window: str | None
    broker: Document


@dataclass(frozen=True, kw_only=True)
class WishOptions:
    """Every wish of a batch as an option; one that is not made has the broker's default, or, for `retry`, the value of the
    first batch. `asked()` checks them."""

    within: Annotated[str | None, typer.Option(help="How long it may take: 90m, 6h, 2d; 24h if not said.")] = None
    deadline: Annotated[
        str | None, typer.Option(help="When it must be done: ISO 8601 with an offset, or unix seconds.")
    ] = None
    max_usd: Annotated[str | None, typer.Option(help="The most that it may cost, in USD.")] = None
    residency: Annotated[
        str | None, typer.Option(help="Where it may run: ISO country codes and group names, such as `eu,CH`.")
    ] = None
    data_class: Annotated[
        DataClass | None, typer.Option(help="What the data is; it may only be more than the project's own class.")
    ] = None
    confidentiality: Annotated[Confidentiality | None, typer.Option(help="The least that a place must offer.")] = None
    max_rtt_ms: Annotated[
        int | None,
        typer.Option(min=0, max=60_000, help="How far its data may be: ms for a message to the store and back."),
    ] = None
    max_p95_ms: Annotated[
        int | None,
        typer.Option(
            "--max-p95-ms",
            min=1,
            max=3_600_000,
            help="How long 95 of 100 requests may take in the engine: fewer at once, for more.",
        ),
    ] = None
    models: Annotated[
        str | None,
        typer.Option(help="Other models that may answer, such as `a,b`; the cheapest that is feasible does."),
    ] = None
    precision: Annotated[str | None, typer.Option(help="Precisions that are accepted, such as `bf16,fp8`.")] = None
    engine_profile: Annotated[
        str | None, typer.Option(help="The one configured profile that must serve it; see `broker models`.")
    ] = None
    priority: Annotated[
        int | None, typer.Option(min=-100, max=100, help="Higher goes first when not all can; 0 if not said.")
    ] = None
    tag: Annotated[list[str] | None, typer.Option("--tag", help="KEY=VALUE, as often as needed.")] = None
    order: Annotated[Order | None, typer.Option(help="Order of the answers in the output file; input if not said.")] = (
        None
    )
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Run the good lines of a file that has bad ones.")
    ] = False
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Answer exact repeats (temperature 0) from this project's earlier answers.")
    ] = False
    queue: Annotated[bool, typer.Option("--queue", help="Wait for a feasible offer instead of failing.")] = False
    part_lines: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Commit answers at least every so many lines.")
    ] = None

    def asked(self) -> Wishes:
        """Raises Failure (usage) naming the option and its value."""
        if self.within is not None and not re.fullmatch(r"[1-9]\d{0,5}[mhd]", self.within):
            raise Failure(f"--within {self.within!r}: want a number and m, h or d, such as 6h", USAGE)
        wished = {
            "deadline": None if self.deadline is None else unix_seconds(self.deadline),
            "max_usd": None if self.max_usd is None else decimal_usd("--max-usd", self.max_usd),
            "residency": names("--residency", self.residency),
            "data_class": self.data_class,
            "confidentiality": self.confidentiality,
            "max_rtt_ms": self.max_rtt_ms,
            "max_p95_ms": self.max_p95_ms,
            "models": names("--models", self.models),
            "precision": names("--precision", self.precision),
            "engine_profile": self.engine_profile,
            "priority": self.priority,
            "tags": pairs("--tag", self.tag) or None,
            "order": self.order,
            "skip_invalid": self.skip_invalid or None,
            "reuse": self.reuse or None,
            "on_infeasible": "queue" if self.queue else None,
            "part_lines": self.part_lines,
        }
        return Wishes(self.within, {name: value for name, value in wished.items() if value is not None})


def unix_seconds(text: str, option: str = "--deadline") -> int:
    """A time as a person gives it. Raises Failure (usage) naming the option.

    >>> unix_seconds("2026-11-22T12:00:00+01:00"), unix_seconds("1795345200")
    (1795345200, 1795345200)
    """
    if text.isdecimal():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as wrong:
        raise Failure(f"{option} {text!r}: {wrong}", USAGE) from wrong
    if moment.tzinfo is None:
        raise Failure(f"{option} {text!r}: say which zone, such as {text}Z or {text}+01:00", USAGE)
    return int(moment.timestamp())


def decimal_usd(option: str, text: str) -> str:
    """The text of an amount, as it was given: the API's amounts are text too. Raises Failure (usage)."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise Failure(f"{option} {text!r}: want a decimal amount such as 40 or 0.25", USAGE)
    return text


def names(option: str, text: str | None) -> list[str] | None:
    """`a, b` as a list; None when the option was not given. Raises Failure (usage) when it names nothing."""
    if text is None:
        return None
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise Failure(f"{option} {text!r}: want one or more names, separated by commas", USAGE)
    return found


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """`k=v` texts as a mapping. Raises Failure (usage) for a text without `=`, and for a key given twice."""
    found: dict[str, str] = {}
    for text in given or ():
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise Failure(f"{option} {text!r}: want KEY=VALUE", USAGE)
        if key in found:
            raise Failure(f"{option} {text!r}: {key} was already given as {found[key]!r}", USAGE)
        found[key] = value
    return found
