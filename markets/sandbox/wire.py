"""How the sandbox's values look in its answers. One side of the format; the schemas are in openapi.py."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from markets.instants import moment
from markets.sandbox.catalogue import CatalogueOffer
from markets.sandbox.faults import Fault
from markets.sandbox.state import Instance, Metered

Json = dict[str, Any]


def time_text(us: int) -> str:
    """RFC 3339 with microseconds and Z."""
    return moment(us).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def offer_json(offer: CatalogueOffer, price: Decimal, available: int) -> Json:
    return {
        "id": offer.id,
        "region": offer.region,
        "zone": offer.zone,
        "country": offer.country,
        "subdivision": offer.subdivision,
        "tier": offer.tier,
        "operator": offer.operator,
        "jurisdictions": None if offer.jurisdictions is None else list(offer.jurisdictions),
        "pricing": offer.pricing,
        "price": str(price),
        "currency": "USD",
        "available": available,
        "granularity_s": offer.granularity_s,
        "minimum_s": offer.minimum_s,
        "interruptions_per_hour": None if offer.hazard is None else str(offer.hazard),
        "notice_s": offer.notice_s,
        "boot_s": offer.boot_s,
        "confidentiality": offer.confidentiality,
        "accelerator": offer.accelerator.model_dump(),
    }


def instance_json(instance: Instance, folder: Path) -> Json:
    return {
        "id": instance.id,
        "tag": instance.tag,
        "owner": instance.owner,
        "offer": instance.offer,
        "state": instance.state,
        "price": str(instance.price),
        "currency": "USD",
        "granularity_s": instance.granularity_s,
        "minimum_s": instance.minimum_s,
        "created_at": time_text(instance.created_us),
        "started_at": _maybe_time(instance.started_us),
        "ended_at": _maybe_time(instance.ended_us),
        "end_reason": instance.end_reason,
        "exit_status": instance.exit_status,
        "preemption_at": _maybe_time(instance.kill_at_us if instance.noticed else None),
        "pid": instance.pid,
        "folder": str(folder),
    }


def meter_json(line: Metered) -> Json:
    return {
        "instance": line.instance.id,
        "tag": line.instance.tag,
        "offer": line.instance.offer,
        "from": time_text(line.instance.started_us or 0),
        "to": time_text(line.until_us),
        "seconds": line.seconds,
        "amount": f"{line.amount:f}",
        "currency": "USD",
        "final": line.final,
    }


def invoice_json(lines: Sequence[Metered]) -> Json:
    total = sum((line.amount for line in lines), Decimal(0))
    return {"lines": [meter_json(line) for line in lines], "total": f"{total:f}", "currency": "USD"}


def fault_json(fault: Fault) -> Json:
    return {"name": fault.name, "times": fault.times, "seconds": fault.seconds}


def _maybe_time(us: int | None) -> str | None:
    return None if us is None else time_text(us)
