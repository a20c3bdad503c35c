"""The same queue in another world: a provider gone, other prices, deadlines, limits or countries. A question only."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import TypeVar

import msgspec

from solver.errors import BadSnapshot
from solver.residency import compile_countries, digest
from solver.types import HOUR_US, OfferView, Snapshot, Work

ALL = "*"
Value = TypeVar("Value")


class WhatIf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is different. Offers are named by market or by the beginning of their key, works by id; `*` is all.

    `without`: offers that are gone. `price_factor`: hourly price times a decimal ("1.2"). `later_hours`: the deadline moves by so
    many hours, negative is sooner. `max_usd`: another limit, null for none. `countries`: residency is these codes
    and groups instead.
    """

    without: tuple[str, ...] = ()
    price_factor: dict[str, str] = {}
    later_hours: dict[str, float] = {}
    max_usd: dict[str, str | None] = {}
    countries: dict[str, tuple[str, ...]] = {}


def applied(snapshot: Snapshot, question: WhatIf) -> Snapshot:
    """The snapshot as it would be. Raises BadSnapshot for a name that nothing has or an amount that is none, UnknownCountry."""
    _known(snapshot, question)
    policies = dict(snapshot.policies)
    compiled = {work: compile_countries(list(names)) for work, names in question.countries.items()}
    for policy in compiled.values():
        policies[digest(policy)] = policy
    works = []
    for work in snapshot.works:
        changes: dict[str, object] = {}
        if (hours := _of(question.later_hours, work)) is not None:
            changes["deadline_us"] = work.deadline_us + round(hours * HOUR_US)
        if work.id in question.max_usd or ALL in question.max_usd:
            limit = _of(question.max_usd, work)
            changes["max_nano"] = None if limit is None else int(_decimal("max_usd", limit) * 10**9)
        if (policy_of := _of(compiled, work)) is not None:
            changes["policy_hash"] = digest(policy_of)
        works.append(msgspec.structs.replace(work, **changes) if changes else work)
    return msgspec.structs.replace(
        snapshot,
        works=tuple(works),
        offers=tuple(_offer(each, question) for each in snapshot.offers),
        policies=policies,
    )


def _offer(offer: OfferView, question: WhatIf) -> OfferView:
    if any(_names(name, offer) for name in question.without):
        return msgspec.structs.replace(offer, excluded="what if: it is gone")
    factors = [
        _decimal("price_factor", factor) for name, factor in question.price_factor.items() if _names(name, offer)
    ]
    if not factors or offer.price_nano_hour is None:
        return offer
    price = Decimal(offer.price_nano_hour)
    for factor in factors:
        price *= factor
    return msgspec.structs.replace(offer, price_nano_hour=max(1, int(price)))


def _names(name: str, offer: OfferView) -> bool:
    return name in (ALL, offer.market) or offer.key.startswith(name)


def _of(values: Mapping[str, Value], work: Work) -> Value | None:
    return values.get(work.id, values.get(ALL))


def _decimal(field: str, text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise BadSnapshot(f"{field} {text!r} is no decimal number") from error
    if not number.is_finite() or number <= 0:
        raise BadSnapshot(f"{field} {text!r} is not a positive number")
    return number


def _known(snapshot: Snapshot, question: WhatIf) -> None:
    works = {work.id for work in snapshot.works}
    for field in ("later_hours", "max_usd", "countries"):
        for name in getattr(question, field):
            if name != ALL and name not in works:
                raise BadSnapshot(f"{field} names work {name!r}, which is not in the queue")
    for field, names in (("without", question.without), ("price_factor", question.price_factor)):
        for name in names:
            if not any(_names(name, offer) for offer in snapshot.offers):
                raise BadSnapshot(f"{field} {name!r} is neither a market nor the beginning of an offer's key")
