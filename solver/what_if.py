"""The same queue in another world: a provider gone, other prices, deadlines, limits, latencies or policies. A question only."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import TypeVar

import msgspec

from solver.errors import BadSnapshot
from solver.residency import Policy, compile_countries, digest
from solver.residency.classes import raised
from solver.residency.document import Document, read_document
from solver.residency.effective import effective
from solver.types import HOUR_US, OfferView, Snapshot, Work

ALL = "*"
# Beyond these nobody asks, and numbers stay ones that a snapshot can carry.
MOST_HOURS, MOST_FACTOR, MOST_USD, MOST_MS = 24 * 366, Decimal(10**6), Decimal(10**9), 3_600_000
Value = TypeVar("Value")


class WhatIf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is different. Offers are named by market or by the beginning of their key, works by id; `*` is all.

    `without`: offers that are gone, with the machines that run there. `price_factor`: price (by the hour, or of tokens) times a
    decimal ("1.2"); what runs keeps its own. `rtt_ms`: to the data from there and back takes so long. `later_hours`: the
    deadline moves by so many hours, negative is sooner. `max_usd`: another limit, null for none. `max_rtt_ms`: as far from its
    data and no farther, null for anywhere. `countries`: residency is these codes and groups instead. `policies`: it is this
    document (YAML) instead, for the class of the work's data; of a work that both name, the document counts.
    """

    without: tuple[str, ...] = ()
    price_factor: dict[str, str] = {}
    rtt_ms: dict[str, int] = {}
    later_hours: dict[str, float] = {}
    max_usd: dict[str, str | None] = {}
    max_rtt_ms: dict[str, int | None] = {}
    countries: dict[str, tuple[str, ...]] = {}
    policies: dict[str, str] = {}


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where a project is in the tree, and the class of its data: what a policy document asks of it."""

    node: str
    data_class: str


def applied(snapshot: Snapshot, question: WhatIf, standings: Mapping[str, Standing] | None = None) -> Snapshot:
    """The snapshot as it would be. `standings` by project; one that is not in it stands alone, with data of class `internal`.

    Raises BadSnapshot for a name that nothing has, an amount that is none, or a document that cannot be read; UnknownCountry.
    """
    _known(snapshot, question)
    policies = dict(snapshot.policies)
    compiled = {name: compile_countries(list(places)) for name, places in question.countries.items()}
    documents = {name: _document(name, text) for name, text in question.policies.items()}
    works = []
    for work in snapshot.works:
        changes = _changes(work, question)
        policy = _of(compiled, work)
        if (document := _of(documents, work)) is not None:
            policy = _effective(document, work, snapshot, standings or {})
        if policy is not None:
            changes["policy_hash"] = digest(policy)
            policies[digest(policy)] = policy
        works.append(msgspec.structs.replace(work, **changes) if changes else work)
    gone = {each.key for each in snapshot.offers if any(_names(name, each) for name in question.without)}
    return msgspec.structs.replace(
        snapshot,
        works=tuple(works),
        offers=tuple(_offer(each, question, is_gone=each.key in gone) for each in snapshot.offers),
        running=tuple(each for each in snapshot.running if each.offer_key not in gone),
        policies=policies,
    )


def _changes(work: Work, question: WhatIf) -> dict[str, object]:
    """Of a work, all but its policy."""
    changes: dict[str, object] = {}
    if (hours := _of(question.later_hours, work)) is not None:
        changes["deadline_us"] = work.deadline_us + round(hours * HOUR_US)
    if _is_asked(question.max_usd, work):
        limit = _of(question.max_usd, work)
        changes["max_nano"] = None if limit is None else int(_decimal("max_usd", limit, MOST_USD) * 10**9)
    if _is_asked(question.max_rtt_ms, work):
        changes["max_rtt_ms"] = _of(question.max_rtt_ms, work)
    return changes


def _document(name: str, text: str) -> Document:
    reading = read_document(text)
    if reading.document is None:
        first, more = reading.errors[0], len(reading.errors) - 1
        others = f" ({more} more; `broker policy validate` shows all)" if more else ""
        raise BadSnapshot(f"policies {name!r} is no policy document: {first}{others}")
    return reading.document


def _effective(document: Document, work: Work, snapshot: Snapshot, standings: Mapping[str, Standing]) -> Policy:
    standing = standings.get(work.project) or Standing(node=work.project, data_class="internal")
    data_class = raised(standing.data_class, snapshot.policies[work.policy_hash].data_class)
    return effective([document], data_class=data_class, project=standing.node)


def _offer(offer: OfferView, question: WhatIf, *, is_gone: bool) -> OfferView:
    changes: dict[str, object] = {"excluded": "what if: it is gone"} if is_gone else {}
    for name, rtt_ms in question.rtt_ms.items():
        if _names(name, offer):
            changes["rtt_ms"] = rtt_ms
    factor = Decimal(1)
    for name, text in question.price_factor.items():
        if _names(name, offer):
            factor = min(MOST_FACTOR, factor * _decimal("price_factor", text, MOST_FACTOR))
    if factor != 1:
        if offer.price_nano_hour is not None:
            changes["price_nano_hour"] = _times(offer.price_nano_hour, factor)
        if offer.per_million_nano is not None:
            asked, answered = offer.per_million_nano
            changes["per_million_nano"] = (_times(asked, factor), _times(answered, factor))
    return msgspec.structs.replace(offer, **changes) if changes else offer


def _times(nano: int, factor: Decimal) -> int:
    """An unknown price (0) stays unknown."""
    return max(1, int(nano * factor)) if nano else 0


def _names(name: str, offer: OfferView) -> bool:
    return name in (ALL, offer.market) or offer.key.startswith(name)


def _of(values: Mapping[str, Value], work: Work) -> Value | None:
    return values.get(work.id, values.get(ALL))


def _is_asked(values: Mapping[str, object], work: Work) -> bool:
    return work.id in values or ALL in values


def _decimal(field: str, text: str, most: Decimal) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise BadSnapshot(f"{field} {text!r} is no decimal number") from error
    if not number.is_finite() or number <= 0:
        raise BadSnapshot(f"{field} {text!r} is not a positive number")
    if number > most:
        raise BadSnapshot(f"{field} {text!r} is too much: {most} at most")
    return number


def _known(snapshot: Snapshot, question: WhatIf) -> None:
    works = {work.id for work in snapshot.works}
    for field in ("later_hours", "max_usd", "max_rtt_ms", "countries", "policies"):
        for name in getattr(question, field):
            if name != ALL and name not in works:
                raise BadSnapshot(f"{field} names work {name!r}, which is not in the queue")
    for field in ("without", "price_factor", "rtt_ms"):
        for name in getattr(question, field):
            if name != ALL and not any(_names(name, offer) for offer in snapshot.offers):
                raise BadSnapshot(f"{field} {name!r} is neither a market nor the beginning of an offer's key")
    _within(question)


def _within(question: WhatIf) -> None:
    """Every number is one, also where nothing is in the queue that it would change."""
    for text in question.price_factor.values():
        _decimal("price_factor", text, MOST_FACTOR)
    for limit in question.max_usd.values():
        if limit is not None:
            _decimal("max_usd", limit, MOST_USD)
    for name, hours in question.later_hours.items():
        if not abs(hours) <= MOST_HOURS:
            raise BadSnapshot(f"later_hours {name!r}: {hours} hours are not between -{MOST_HOURS} and {MOST_HOURS}")
    for field in ("rtt_ms", "max_rtt_ms"):
        for name, rtt_ms in getattr(question, field).items():
            if rtt_ms is not None and not 0 <= rtt_ms <= MOST_MS:
                raise BadSnapshot(f"{field} {name!r}: {rtt_ms} ms are not between 0 and {MOST_MS}")
