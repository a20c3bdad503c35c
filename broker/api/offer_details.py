"""One offer in depth: what it did, why it is believed, and what its pool does at which hour; and the whole list as a file."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal
from urllib.parse import unquote

from aiohttp import web
from pydantic import ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.api import market_shapes, shapes
from broker.api.market import OfferQuery, found_offers, offer_shape
from broker.api.problems import Problem, bad_request, not_found
from broker.api.registry import EVERYONE, Call, Route, route
from broker.control.planned_offers import why_not_rented
from broker.house_accounts import refusal
from broker.offer_files import as_csv, as_parquet
from broker.price_ages import default_max_age_s, max_ages_s
from broker.price_list import age_s, is_snapshot, one_listed, usd_price
from broker.tables import HouseAccount
from jobs.clock import MICROSECONDS, db_now
from ledger.money import from_nano, to_nano
from markets import history, learned
from markets.facts.accelerators import chips
from markets.history import DAY_US, HOUR_US, PPM
from markets.instants import micros
from markets.learned import Learned
from markets.offer import Offer, Pricing
from markets.own_account import holder_of, provider_of
from markets.price_book import Listed
from markets.tables import DayRow, OfferRow, PollRow

# What our rentals taught is remembered for so long: a host that was mended must be able to become good again.
LEARNED_DAYS = 90


class KeyQuery(shapes.Own):
    model_config = ConfigDict(extra="forbid")

    key: str = Field(min_length=1, max_length=1000, description="an offer's key")


class HistoryQuery(KeyQuery):
    days: int = Field(default=30, ge=1, le=3650)


class PoolQuery(shapes.Own):
    model_config = ConfigDict(extra="forbid")

    market: str = Field(max_length=64)
    gpu: str = Field(max_length=64)
    pricing: Pricing = "on_demand"
    days: int = Field(default=28, ge=1, le=365)


class ExportQuery(OfferQuery):
    format: Literal["csv", "json", "parquet"] = "csv"


async def offer_history(call: Call, query: HistoryQuery) -> market_shapes.History:
    """What an offer cost and whether it was to be had, change by change; older days are one line each."""
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        since_us = now_us - query.days * DAY_US
        changes = await history.changes(session, query.key, from_us=since_us, to_us=now_us + 1)
        days = await history.days(session, query.key, from_us=since_us, to_us=now_us)
        is_new = not changes and not days
        if is_new or not _may_see(call, unquote(query.key.partition("/")[0])):
            listed = await _one(session, call, query.key, now_us)  # raises for a key that nobody knows
            changes = [_of_snapshot(listed)] if is_new and is_snapshot(listed) else changes
        return market_shapes.History(
            key=query.key,
            since=since_us // MICROSECONDS,
            until=now_us // MICROSECONDS,
            days=[_day(row) for row in days],
            changes=[
                market_shapes.Change(
                    at=each.at_us // MICROSECONDS,
                    state=each.state,
                    usd_per_hour=_usd(each.price_nano_hour),
                    usd_per_million_input=_usd(each.input_nano),
                    usd_per_million_output=_usd(each.output_nano),
                    capacity=each.capacity,
                    reason=each.reason,
                )
                for each in changes
            ],
        )


async def explain_offer(call: Call, query: KeyQuery) -> market_shapes.Explained:
    """Explain one offer: the parts of its price, the provider's own words, the evidence, what our rentals taught."""
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        listed = await _one(session, call, query.key, now_us)
        since_us = now_us - LEARNED_DAYS * DAY_US
        known = (await learned.learned(session, since_us=since_us, keys=[query.key])).get(query.key, Learned())
        poll = await session.get(PollRow, listed.offer.market)
        account = await session.get(HouseAccount, listed.offer.market)
    card_until_us = None if poll is None else poll.card_until_us
    not_rented = _why_not_rented(call, listed.offer.market, None if poll is None else poll.card_by)
    not_rented = not_rented or (refusal(account) if account is not None else None)
    excluded = listed.excluded or ("sold out: capacity 0" if listed.offer.capacity == 0 else not_rented)
    offer, trusted = listed.offer, learned.trust(listed.offer, known, now_us=now_us, in_counts=call.is_house)
    price = usd_price(offer)
    return market_shapes.Explained(
        key=query.key,
        usd_per_hour=None if price is None else shapes.plain(price),
        components={name: shapes.plain(amount) for name, amount in offer.components.items()},
        sunk_usd_per_hour=None if offer.sunk_per_hour is None else shapes.plain(offer.sunk_per_hour),
        usd_per_million=_tokens(offer),
        endpoint=_endpoint(offer),
        data_policy=_data_policy(offer),
        raw=dict(offer.raw),
        raw_sha256=offer.raw_sha256,
        source=offer.source,
        observed_at=micros(offer.observed_at) // MICROSECONDS,
        age_s=age_s(listed, now_us),
        max_age_s=_max_age_s(call, listed, card_until_us),
        capacity=offer.capacity,
        deposit_usd=shapes.plain(offer.deposit),
        refundable_fraction=shapes.plain(offer.refundable_fraction),
        granularity_s=offer.granularity_s,
        minimum_s=offer.minimum_s,
        quota=_quota_words(offer),
        egress_usd_per_gb=shapes.plain(offer.egress_per_gb),
        ingress_usd_per_gb=shapes.plain(offer.ingress_per_gb),
        evidence=[
            market_shapes.Evidence(
                kind=each.kind,
                source=each.source,
                observed_at=micros(each.observed_at) // MICROSECONDS,
                valid_until=micros(each.observed_at + each.ttl) // MICROSECONDS,
                valid=micros(each.observed_at + each.ttl) > now_us,
            )
            for each in offer.evidence
        ],
        location_tier=offer.location_tier,
        operator=offer.operator,
        operator_jurisdictions=None if offer.jurisdictions is None else list(offer.jurisdictions),
        gpu_facts=_gpu_facts(offer.accelerator.name),
        learned=_learned(known, in_counts=call.is_house),
        trust=trusted.score,
        trust_points=[
            market_shapes.TrustPoint(name=each.name, points=each.points, most=each.most, why=each.why)
            for each in trusted.points
        ],
        may_be_chosen=excluded is None,
        reason=excluded or listed.unlocated,
    )


def _why_not_rented(call: Call, market: str, card_by: str | None) -> str | None:
    """An account of the project's own is rented at wherever there is one."""
    is_rented_at = market in call.services.markets or holder_of(market) is not None
    if is_rented_at and card_by is None:
        return None
    return why_not_rented(market, is_card=card_by is not None, by=card_by if call.is_house else None)


def _max_age_s(call: Call, listed: Listed, card_until_us: int | None) -> int | None:
    """A card's prices count until its day, those of the snapshot never."""
    if is_snapshot(listed):
        return None
    if card_until_us is not None:
        return max(0, card_until_us - micros(listed.offer.observed_at)) // MICROSECONDS
    return max_ages_s(call.services).get(provider_of(listed.offer.market), default_max_age_s(call.services))


def _quota_words(offer: Offer) -> str | None:
    quota = offer.quota
    if quota is None:
        return None
    return f"{quota.left} {quota.unit} are left under {quota.group}, one machine counts {quota.units}"


async def pool_profile(call: Call, query: PoolQuery) -> market_shapes.Pool:
    """When in the day a pool is cheap and has room: by hour (UTC), of all that is remembered of its offers."""
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        rows = await session.execute(
            select(col(OfferRow.key), col(OfferRow.gpu_count)).where(
                col(OfferRow.market).in_([query.market] if _may_see(call, query.market) else []),
                col(OfferRow.accelerator) == query.gpu,
                col(OfferRow.pricing) == query.pricing,
            )
        )
        to_us = now_us // HOUR_US * HOUR_US
        from_us = to_us - query.days * DAY_US
        offers = [
            (await history.changes(session, key, from_us=from_us, to_us=to_us), count) for key, count in rows.all()
        ]
    if not offers:
        raise not_found(
            "pool_not_found",
            f"The book has no {query.pricing} offer of {query.gpu!r} at {query.market!r}; "
            f"`broker offers --market {query.market}` lists what it has.",
        )
    return market_shapes.Pool(
        market=query.market,
        gpu=query.gpu,
        pricing=query.pricing,
        offers=len(offers),
        hours=[
            market_shapes.Hour(
                hour=each.hour,
                usd_per_gpu_hour=_usd(each.mean_nano),
                listed=None if each.listed_ppm is None else _part(each.listed_ppm),
                available=None if each.available_ppm is None else _part(each.available_ppm),
            )
            for each in history.by_hour(offers, from_us, to_us)
        ],
    )


async def export_offers(call: Call, query: ExportQuery) -> web.Response:
    """Export the offers, in the same order and by the same filters, as CSV, JSON or Parquet."""
    found, _ = await found_offers(call, query)
    rows = [offer_shape(each).model_dump() for each in found]
    if query.format == "json":
        body, kind = (
            shapes.OfferList(data=[offer_shape(each) for each in found]).model_dump_json().encode(),
            "application/json",
        )
    elif query.format == "csv":
        body, kind = as_csv(rows), "text/csv"
    else:
        try:
            body, kind = as_parquet(rows), "application/vnd.apache.parquet"
        except ModuleNotFoundError as missing:
            raise bad_request(
                "format_unavailable",
                f"Parquet needs {missing.name} on the broker: install compute-broker[parquet], or ask for csv.",
                param="format",
            ) from missing
    return web.Response(body=body, content_type=kind)


async def _one(session: AsyncSession, call: Call, key: str, now_us: int) -> Listed:
    listed = await one_listed(session, call.services, key, now_us=now_us, project=call.project)
    if listed is None:
        raise _unknown(key)
    return listed


def _of_snapshot(listed: Listed) -> history.Change:
    """The one day that is known of an offer of the snapshot."""
    price = usd_price(listed.offer)
    return history.Change(
        at_us=micros(listed.offer.observed_at),
        state="snapshot",
        price_nano_hour=None if price is None else to_nano(price),
        capacity=listed.offer.capacity,
        reason=listed.excluded,
    )


def _may_see(call: Call, market: str) -> bool:
    """A project's own account is nobody else's."""
    return holder_of(market) in (None, call.project)


def _unknown(key: str) -> Problem:
    return not_found("offer_not_found", f"No offer has the key {key!r}; `broker offers` lists them.")


def _tokens(offer: Offer) -> dict[str, str] | None:
    tokens = offer.per_million
    if tokens is None:
        return None
    parts = {"input": tokens.input, "cached": tokens.cached, "output": tokens.output}
    return {name: shapes.plain(amount) for name, amount in parts.items() if amount is not None}


def _endpoint(offer: Offer) -> market_shapes.Endpoint | None:
    said = offer.endpoint
    if said is None:
        return None
    return market_shapes.Endpoint(
        model=said.model,
        serves=said.serves,
        base_url=said.base_url,
        mode=said.mode,
        window_s=said.window_s,
        context_tokens=said.context_tokens,
        max_output_tokens=said.max_output_tokens,
        precision=said.precision,
    )


def _data_policy(offer: Offer) -> market_shapes.DataPolicy | None:
    said = offer.data_policy
    if said is None:
        return None
    return market_shapes.DataPolicy(
        retention_days=said.get("retention_days"), training=said.get("training"), source=said.get("source")
    )


def _gpu_facts(name: str) -> dict[str, str]:
    chip = chips().get(name)
    if chip is None:
        return {}
    facts = {
        "form": chip.form,
        "memory_gib": chip.memory_mib // 1024,
        "bandwidth_gb_s": chip.bandwidth_gb_s,
        "fp16_tflops": chip.fp16_tflops,
        "fp8_tflops": chip.fp8_tflops,
        "fp4_tflops": chip.fp4_tflops,
        "engines": " ".join(chip.engines),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _learned(known: Learned, *, in_counts: bool) -> market_shapes.Learned:
    """In counts for the house alone: they are of all projects' rentals, and say how much the others run."""
    rate, failed = known.interruptions_per_hour, known.failed_share
    return market_shapes.Learned(
        asked=known.asked if in_counts else None,
        started=known.started if in_counts else None,
        failed=known.failed if in_counts else None,
        interrupted=known.interrupted if in_counts else None,
        ran_s=known.ran_s if in_counts else None,
        boot_s=known.boot_s,
        failed_share=None if failed is None else shapes.plain(failed),
        interruptions_per_hour=None if rate is None else shapes.plain(rate),
        quoted_usd_per_hour=_usd(known.quoted_nano // known.started) if known.started else None,
        billed_usd_per_hour=_usd(known.billed_nano // known.started) if known.started else None,
    )


def _day(row: DayRow) -> market_shapes.Day:
    return market_shapes.Day(
        day=datetime.fromtimestamp(row.day_us / MICROSECONDS, UTC).date(),
        changes=row.changes,
        min_usd=_usd(row.min_nano),
        mean_usd=_usd(row.mean_nano),
        max_usd=_usd(row.max_nano),
        listed=_part(row.listed_ppm),
        available=_part(row.available_ppm),
    )


def _usd(nano: int | None) -> str | None:
    return None if nano is None else shapes.plain(from_nano(nano))


def _part(ppm: int) -> str:
    return shapes.plain(Decimal(ppm) / PPM)


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/market/offers/history", offer_history, tag="market", roles=EVERYONE),
    route("GET", "/v1/market/offers/explain", explain_offer, tag="market", roles=EVERYONE),
    route(
        "GET",
        "/v1/market/offers/export",
        export_offers,
        tag="market",
        roles=EVERYONE,
        produces=("text/csv", "application/json", "application/vnd.apache.parquet"),
    ),
    route("GET", "/v1/market/pool", pool_profile, tag="market", roles=EVERYONE),
)  # fmt: skip
