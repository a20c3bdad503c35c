"""How an offer looks at rest: one flat JSON object, written and read here alone.

The fields are listed by hand *because* a change of the model must not silently change what is stored. Decimals are
strings, times ISO 8601 with offset, durations whole seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from markets.errors import BadOffer
from markets.offer import Accelerator, Evidence, Offer, OfferKey, QuotaShare, TokenEndpoint, TokenPrice

Record = dict[str, Any]
_ENCODER = msgspec.json.Encoder()


def record_from_offer(offer: Offer, key: str | None = None) -> Record:
    """The stored form of `offer`; `offer_from_record` is its inverse. `key` is `str(offer.key)`, where it is known already."""
    chip, per_million = offer.accelerator, offer.per_million
    return {
        "key": key or str(offer.key),
        "launch": offer.launch,
        "accelerator": {
            "kind": chip.kind,
            "name": chip.name,
            "form": chip.form,
            "memory_mib": chip.memory_mib,
            "count": chip.count,
            "fraction": str(chip.fraction),
        },
        "currency": offer.currency,
        "price": _text(offer.price),
        "components": {name: str(amount) for name, amount in offer.components.items()},
        "per_million": per_million
        and {"input": str(per_million.input), "output": str(per_million.output), "cached": _text(per_million.cached)},
        "observed_at": offer.observed_at.isoformat(),
        "source": offer.source,
        "raw_sha256": offer.raw_sha256,
        "capacity": offer.capacity,
        "granularity_s": offer.granularity_s,
        "minimum_s": offer.minimum_s,
        "deposit": str(offer.deposit),
        "refundable_fraction": str(offer.refundable_fraction),
        "egress_per_gb": str(offer.egress_per_gb),
        "ingress_per_gb": str(offer.ingress_per_gb),
        "interruption_per_hour": _text(offer.interruption_per_hour),
        "notice_s": offer.notice_s,
        "boot_s": offer.boot_s,
        "country": offer.country,
        "subdivision": offer.subdivision,
        "evidence": [
            {
                "kind": each.kind,
                "source": each.source,
                "observed_at": each.observed_at.isoformat(),
                "ttl_s": int(each.ttl.total_seconds()),
            }
            for each in offer.evidence
        ],
        "location_tier": offer.location_tier,
        "confidentiality": offer.confidentiality,
        "operator": offer.operator,
        "jurisdictions": None if offer.jurisdictions is None else list(offer.jurisdictions),
        "data_policy": None if offer.data_policy is None else dict(offer.data_policy),
        "quarantined": offer.quarantined,
        "raw": dict(offer.raw),
        "sunk_per_hour": _text(offer.sunk_per_hour),
        "endpoint": _endpoint_record(offer.endpoint),
        "quota": _quota_record(offer.quota),
    }


def _quota_record(quota: QuotaShare | None) -> Record | None:
    if quota is None:
        return None
    return {"group": quota.group, "units": quota.units, "left": quota.left, "unit": quota.unit}


def record_text(record: Record) -> str:
    """The record as JSON. What the quick encoder cannot write (a number of more than 64 bits in a provider's words) the slow one
    can."""
    try:
        return _ENCODER.encode(record).decode()
    except (OverflowError, UnicodeEncodeError, TypeError):
        return json.dumps(record)


def _endpoint_record(endpoint: TokenEndpoint | None) -> Record | None:
    if endpoint is None:
        return None
    return {
        "model": endpoint.model,
        "base_url": endpoint.base_url,
        "serves": endpoint.serves,
        "mode": endpoint.mode,
        "window_s": endpoint.window_s,
        "context_tokens": endpoint.context_tokens,
        "max_output_tokens": endpoint.max_output_tokens,
        "precision": endpoint.precision,
    }


def offer_from_record(record: Mapping[str, Any]) -> Offer:
    """The offer that `record` stands for. Raises BadOffer naming the field that is missing or cannot be read."""
    try:
        return _offer(record)
    except KeyError as missing:
        raise BadOffer(f"offer record {record.get('key')!r}: field {missing} is missing") from missing
    except (ValueError, TypeError, InvalidOperation) as wrong:
        raise BadOffer(
            f"offer record {record.get('key')!r}: {wrong!r}; it must be as record_from_offer writes it"
        ) from wrong


def _offer(record: Mapping[str, Any]) -> Offer:
    jurisdictions = record["jurisdictions"]
    return Offer(
        key=OfferKey.parse(record["key"]),
        launch=record["launch"],
        accelerator=_accelerator(record["accelerator"]),
        currency=record["currency"],
        price=_decimal(record["price"]),
        components={name: Decimal(amount) for name, amount in record["components"].items()},
        per_million=_token_price(record["per_million"]),
        observed_at=_time(record["observed_at"]),
        source=record["source"],
        raw_sha256=record["raw_sha256"],
        capacity=record["capacity"],
        granularity_s=record["granularity_s"],
        minimum_s=record["minimum_s"],
        deposit=Decimal(record["deposit"]),
        refundable_fraction=Decimal(record["refundable_fraction"]),
        egress_per_gb=Decimal(record["egress_per_gb"]),
        ingress_per_gb=Decimal(record["ingress_per_gb"]),
        interruption_per_hour=_decimal(record["interruption_per_hour"]),
        notice_s=record["notice_s"],
        boot_s=record["boot_s"],
        country=record["country"],
        subdivision=record["subdivision"],
        evidence=tuple(_evidence(each) for each in record["evidence"]),
        location_tier=record["location_tier"],
        confidentiality=record["confidentiality"],
        operator=record["operator"],
        jurisdictions=None if jurisdictions is None else tuple(jurisdictions),
        data_policy=record["data_policy"],
        quarantined=record["quarantined"],
        # records of before these fields are still read: rentals keep theirs for ever
        raw=record.get("raw", {}),
        sunk_per_hour=_decimal(record.get("sunk_per_hour")),
        endpoint=_endpoint(record.get("endpoint")),
        quota=_quota(record.get("quota")),
    )


def _quota(record: Mapping[str, Any] | None) -> QuotaShare | None:
    if record is None:
        return None
    return QuotaShare(group=record["group"], units=record["units"], left=record["left"], unit=record["unit"])


def _endpoint(record: Mapping[str, Any] | None) -> TokenEndpoint | None:
    if record is None:
        return None
    return TokenEndpoint(
        model=record["model"],
        base_url=record["base_url"],
        serves=record["serves"],
        mode=record["mode"],
        window_s=record["window_s"],
        context_tokens=record["context_tokens"],
        max_output_tokens=record["max_output_tokens"],
        precision=record["precision"],
    )


def _accelerator(record: Mapping[str, Any]) -> Accelerator:
    return Accelerator(
        kind=record["kind"],
        name=record["name"],
        form=record["form"],
        memory_mib=record["memory_mib"],
        count=record["count"],
        fraction=Decimal(record["fraction"]),
    )


def _token_price(record: Mapping[str, Any] | None) -> TokenPrice | None:
    if record is None:
        return None
    return TokenPrice(
        input=Decimal(record["input"]), output=Decimal(record["output"]), cached=_decimal(record["cached"])
    )


def _evidence(record: Mapping[str, Any]) -> Evidence:
    return Evidence(
        kind=record["kind"],
        source=record["source"],
        observed_at=_time(record["observed_at"]),
        ttl=timedelta(seconds=record["ttl_s"]),
    )


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else str(amount)


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time {text!r} has no offset from UTC")
    return moment
