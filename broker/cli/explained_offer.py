"""One offer in words: what it costs and why, where it is, what our own rentals taught, and whether it may be chosen. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from broker.cli.output import moment, rate, span, usd

Document = dict[str, Any]
NOBODYS_WORD: Document = {"retention_days": None, "training": None, "source": None}


def explanation(found: Document) -> list[str]:
    """The lines of `offers explain`."""
    return [
        found["key"],
        *_price(found),
        *_endpoint(found),
        *_terms(found),
        *_place(found),
        *_trust(found),
        _verdict(found),
    ]


def _price(found: Document) -> Iterator[str]:
    of = "by the token" if found["usd_per_million"] else f"{usd(found['usd_per_hour'])} an hour"
    yield f"price {of}, observed {moment(found['observed_at'])}, from {found['source']}"
    for name, amount in found["components"].items():
        yield f"  {name}: {usd(amount)}"
    if found["sunk_usd_per_hour"]:
        yield f"  paid whether used or not: {usd(found['sunk_usd_per_hour'])} an hour"
    for name, amount in (found["usd_per_million"] or {}).items():
        yield f"  {name}: {rate(amount)} per million tokens"


def _endpoint(found: Document) -> Iterator[str]:
    """What is sold where tokens are, and what becomes of the prompts there."""
    said = found["endpoint"]
    if said is None:
        return
    named = "" if said["model"] == said["serves"] else f" (here {said['serves']})"
    window = "" if said["window_s"] is None else f", in batches answered within {span(said['window_s'])}"
    context, answer = _tokens(said["context_tokens"]), _tokens(said["max_output_tokens"])
    yield f"sells {said['model']}{named} at {said['base_url']}{window}"
    yield f"  context {context}, answer {answer}, precision {said['precision'] or 'unknown'}"
    policy = found["data_policy"] or NOBODYS_WORD
    days = "unknown" if policy["retention_days"] is None else f"{policy['retention_days']} days at most"
    training = {None: "unknown", True: "yes", False: "no"}[policy["training"]]
    source = "" if policy["source"] is None else f", says {policy['source']}"
    yield f"  prompts are kept: {days}; trained on: {training}{source}"


def _tokens(most: int | None) -> str:
    return "unknown" if most is None else f"at most {most:,} tokens"


def _terms(found: Document) -> Iterator[str]:
    yield "said by the provider:"
    yield from [f"  {name}: {words}" for name, words in found["raw"].items()] or ["  (not kept)"]
    limit = "" if found["max_age_s"] is None else f", {span(found['max_age_s'])} is the most allowed"
    yield f"age {span(found['age_s'])}{limit}; billed by {found['granularity_s']} s, at least {found['minimum_s']} s"
    yield from _money(found)
    if found["capacity"] is not None:
        yield f"capacity: {found['capacity'] or '0, sold out'}"
    if found["quota"]:
        yield f"quota: {found['quota']}"


def _money(found: Document) -> Iterator[str]:
    """What is paid beside the hours."""
    if Decimal(found["deposit_usd"]):
        back = Decimal(found["refundable_fraction"]) * 100
        yield f"deposit {usd(found['deposit_usd'])}, of which {back.normalize():f} % come back"
    if Decimal(found["egress_usd_per_gb"]) or Decimal(found["ingress_usd_per_gb"]):
        yield f"traffic: {usd(found['egress_usd_per_gb'])} a GB out, {usd(found['ingress_usd_per_gb'])} in"


def _place(found: Document) -> Iterator[str]:
    yield f"location {found['location_tier']}, operator {found['operator'] or 'unknown'}"
    yield from [
        f"  {each['kind']}: {each['source']}, {'valid until' if each['valid'] else 'expired'} {moment(each['valid_until'])}"
        for each in found["evidence"]
    ] or ["  no evidence"]
    if found["gpu_facts"]:
        yield "device " + ", ".join(f"{name} {value}" for name, value in found["gpu_facts"].items())


def _trust(found: Document) -> Iterator[str]:
    yield f"our rentals: {_taught(found['learned'])}"
    yield f"trust {found['trust']} of 100"
    for each in found["trust_points"]:
        yield f"  {each['name']}: {each['points']} of {each['most']}, {each['why']}"


def _taught(learned: Document) -> str:
    """What became of our own starts of the offer, and of its quoted price."""
    if learned["asked"] is None:  # to a key of one project no counts are told
        return _rates(learned)
    if not learned["asked"]:
        return "none yet"
    boot = "" if learned["boot_s"] is None else f" (boot {span(learned['boot_s'])})"
    lost = "" if learned["interruptions_per_hour"] is None else f" ({learned['interruptions_per_hour']} an hour)"
    quoted, billed = usd(learned["quoted_usd_per_hour"]), usd(learned["billed_usd_per_hour"])
    return (
        f"{learned['asked']} asked for, {learned['started']} started{boot}, {learned['failed']} failed, "
        f"{learned['interrupted']} interrupted in {span(learned['ran_s'])}{lost}, "
        f"quoted {quoted} and billed {billed} an hour"
    )


def _rates(learned: Document) -> str:
    told = [
        f"{learned['failed_share']} of them failed" if learned["failed_share"] is not None else "",
        f"boot {span(learned['boot_s'])}" if learned["boot_s"] is not None else "",
        f"{learned['interruptions_per_hour']} interruptions an hour" if learned["interruptions_per_hour"] else "",
        f"quoted {usd(learned['quoted_usd_per_hour'])} and billed {usd(learned['billed_usd_per_hour'])} an hour"
        if learned["quoted_usd_per_hour"]
        else "",
    ]
    return ", ".join(filter(None, told)) or "none yet"


def _verdict(found: Document) -> str:
    """An unknown place excludes nothing by itself: the policy does, where it asks."""
    if not found["may_be_chosen"]:
        return f"may not be chosen: {found['reason']}"
    return f"may be chosen where no place is asked for: {found['reason']}" if found["reason"] else "may be chosen"
