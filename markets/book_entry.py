"""One offer on its way into the book: believed or doubted, compared with what the book has, and as the columns of its row."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from ledger.money import to_nano
from markets.instants import micros
from markets.offer import Offer, price_problem, quarantine
from markets.offer_record import record_from_offer, record_text
from markets.plausibility import Peers, implausible
from markets.token_plausibility import TokenGround, implausible_tokens

_ENCODER = msgspec.json.Encoder(decimal_format="string")


class Known(NamedTuple):
    """What the book has of an offer, as far as a poll asks: see `OfferRow`."""

    key: str
    fingerprint: str
    observed_us: int
    gone_us: int | None
    price_nano_hour: int | None
    gpu_nano_hour: int | None
    capacity: int | None
    quarantined: str | None

    def gone_change(self, now_us: int) -> dict[str, Any]:
        """The history's row for an offer that its market no longer has."""
        return {
            "key": self.key, "at_us": now_us, "state": "gone", "price_nano_hour": None, "input_nano": None,
            "output_nano": None, "capacity": None, "reason": None,
        }  # fmt: skip


KNOWN = Known._fields


class Entry:
    """An offer of a poll. `quarantined` is why it must not be chosen: the adapter's reason, or a doubt about its price."""

    __slots__ = (
        "fingerprint",
        "gpu_nano_hour",
        "key",
        "observed_us",
        "offer",
        "pool",
        "price_nano_hour",
        "quarantined",
    )

    def __init__(self, key: str, offer: Offer) -> None:
        self.key = key
        self.offer = offer
        self.observed_us = micros(offer.observed_at)
        self.quarantined = offer.quarantined or price_problem(offer)
        priced = self.quarantined is None and offer.price is not None and offer.currency == "USD"
        self.price_nano_hour = to_nano(offer.price) if priced and offer.price is not None else None
        self.gpu_nano_hour = None if self.price_nano_hour is None else _per_device(self.price_nano_hour, offer)
        self.pool = (offer.accelerator.name, offer.key.pricing, offer.key.region)
        self.fingerprint = fingerprint(offer)

    def doubt(self, known: Known | None, peers: Peers | None, single_nano: int | None) -> None:
        """Quarantine a price that cannot be meant. What a market says twice of a changed price it means."""
        if self.gpu_nano_hour is None or self.offer.sunk_per_hour is not None:
            return  # what is paid for anyway costs next to nothing more
        before = known.gpu_nano_hour if known is not None and known.quarantined is None else None
        reason = implausible(self.offer, self.gpu_nano_hour, peers=peers, single_nano=single_nano, before=before)
        if reason is not None:
            self.quarantined, self.price_nano_hour, self.gpu_nano_hour = reason, None, None

    def stand_back(self, reason: str | None) -> None:
        """Leave it to another market that sells the same machines."""
        if reason is not None and self.quarantined is None:
            self.quarantined, self.price_nano_hour, self.gpu_nano_hour = reason, None, None

    def doubt_tokens(self, ground: TokenGround) -> None:
        """The same of a price of tokens."""
        if self.quarantined is None:
            self.quarantined = implausible_tokens(self.offer, ground)

    def is_as(self, known: Known) -> bool:
        """Whether the book has it so already. Being doubted is looked at anew with each poll: other markets move, too."""
        return (
            known.fingerprint == self.fingerprint
            and known.gone_us is None
            and known.quarantined == self.quarantined
            and known.price_nano_hour == self.price_nano_hour
        )

    def change(self, known: Known | None) -> dict[str, Any] | None:
        """The history's row, or None when nothing changed that it is kept for: price, room, or whether it may be chosen."""
        same = (
            known is not None
            and known.gone_us is None
            and known.price_nano_hour == self.price_nano_hour
            and known.capacity == self.offer.capacity
            and known.quarantined == self.quarantined
            and self.offer.per_million is None
        )
        if same:
            return None
        tokens = self.offer.per_million if self.quarantined is None else None
        return {
            "key": self.key,
            "at_us": self.observed_us,
            "state": "listed" if self.quarantined is None else "quarantined",
            "price_nano_hour": self.price_nano_hour,
            "input_nano": None if tokens is None else to_nano(tokens.input),
            "output_nano": None if tokens is None else to_nano(tokens.output),
            "capacity": self.offer.capacity,
            "reason": self.quarantined,
        }

    def columns(self, now_us: int) -> dict[str, Any]:
        """The whole row, its record as JSON text. A country counts only with evidence."""
        offer = self.offer
        kept = quarantine(offer, self.quarantined) if self.quarantined else offer
        return {
            "key": self.key,
            "market": offer.market,
            "accelerator": offer.accelerator.name,
            "pricing": offer.pricing,
            "country": offer.country if offer.evidence else None,
            "price_nano_hour": self.price_nano_hour,
            "capacity": offer.capacity,
            "quarantined": self.quarantined,
            "observed_us": self.observed_us,
            "seen_us": now_us,
            "gone_us": None,
            "gpu_count": offer.accelerator.count,
            "gpu_nano_hour": self.gpu_nano_hour,
            "fingerprint": self.fingerprint,
            "record": record_text(record_from_offer(kept, self.key)),
        }


def entry_of(key: str, offer: Offer) -> Entry:
    """The entry for `offer`, with what its own words say against it."""
    return Entry(key, offer)


def fingerprint(offer: Offer) -> str:
    """What of an offer a market can change, without its times: 128 bits of the hash of its canonical JSON.

    Evidence that was seen with the offer counts without its time, too; evidence of another time has it.
    """
    at = offer.observed_at
    evidence = [
        (e.kind, e.source, e.ttl, None if e.observed_at is at or e.observed_at == at else e.observed_at)
        for e in offer.evidence
    ]
    said = (
        offer.launch, offer.accelerator, offer.currency, offer.price, dict(offer.components), offer.per_million,
        offer.source, offer.raw_sha256, offer.capacity, offer.granularity_s, offer.minimum_s, offer.deposit,
        offer.refundable_fraction, offer.egress_per_gb, offer.ingress_per_gb, offer.interruption_per_hour,
        offer.notice_s, offer.boot_s, offer.country, offer.subdivision, evidence, offer.location_tier,
        offer.confidentiality, offer.operator, offer.jurisdictions,
        None if offer.data_policy is None else dict(offer.data_policy), offer.quarantined, dict(offer.raw),
        offer.sunk_per_hour, offer.endpoint, offer.quota,
    )  # fmt: skip
    return hashlib.blake2b(_ENCODER.encode(said), digest_size=16).hexdigest()


def _per_device(price_nano: int, offer: Offer) -> int:
    """Nano-USD of one whole device-hour; of the machine where it has no device. A slice counts as the part that it is."""
    chip = offer.accelerator
    if chip.count == 1 and chip.fraction == 1:
        return price_nano
    devices = chip.count * chip.fraction if chip.count else Decimal(1)
    return int(price_nano / devices) if devices > 0 else price_nano
