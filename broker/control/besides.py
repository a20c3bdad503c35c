"""What a machine costs besides its time: agreed when it is intended, kept free in its hold while it runs, booked at its end."""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.control.convert import lost_deposit_nano, returned_deposit_nano
from broker.tables import Worker
from jobs.tables import LeaseRow, Part, Shard
from ledger.accrual import Meter
from ledger.besides import charge_besides
from ledger.given_back import expect_refund, pay_deposit, return_deposit
from markets.offer import Offer
from markets.offer_record import offer_from_record
from markets.refunds import is_free
from markets.tables import RentalRow
from solver.data_costs import GB, moving_nano, once_nano
from solver.types import Snapshot, Start


def agreed(offer: Offer, snapshot: Snapshot, start: Start, served: Collection[str]) -> dict[str, int]:
    """The terms of one instance of `start`, as the plan counts them; empty where nothing is paid besides the time.

    `lost_nano` is what stays of the deposit, `load_nano` the download of image and weights, `moved_nano` its part of what its
    batches are expected to bring in and take out, by the prices of a gigabyte beside it.
    """
    view = next(each for each in snapshot.offers if each.key == start.offer_key)
    moved = sum(moving_nano(work, view) for work in snapshot.works if work.id in served)
    terms = {
        "lost_nano": lost_deposit_nano(offer),
        "load_nano": once_nano(view, start.model, snapshot.fetched_bytes) - view.lost_nano,
        "moved_nano": -(-moved // start.count),
        "ingress_nano_gb": view.ingress_nano_gb,
        "egress_nano_gb": view.egress_nano_gb,
    }
    return terms if any(terms.values()) else {}


def set_aside_nano(terms: dict[str, int]) -> int:
    """What of a hold is for these terms, not for time."""
    return terms.get("lost_nano", 0) + terms.get("load_nano", 0) + terms.get("moved_nano", 0)


def terms_of(row: RentalRow) -> dict[str, int]:
    """What was agreed when the machine was intended; machines of before it was kept agreed on nothing."""
    found: dict[str, int] = row.purpose.get("besides", {})
    return found


async def book_besides(
    session: AsyncSession, row: RentalRow, meter: Meter, *, occurred_at_us: int, actor: str, now_us: int
) -> int:
    """Book what a machine whose end is confirmed cost besides its time, and return it in nano-USD.

    The deposit stays there of every machine that started. Data counts as it moved: the model where its worker was ready, the
    input of each lease, each part that was uploaded, counted or not.
    """
    terms = terms_of(row)
    if not terms:
        return 0
    lost, data = terms["lost_nano"], await _moved(session, row.id, terms)
    posting: dict[str, Any] = {"occurred_at_us": occurred_at_us, "actor": actor, "recorded_at_us": now_us}
    await charge_besides(session, meter, "deposit", lost, **posting)
    await charge_besides(session, meter, "data", data, **posting)
    return lost + data


async def book_deposit(
    session: AsyncSession, row: RentalRow, meter: Meter, *, is_over: bool, actor: str, now_us: int
) -> None:
    """Book what comes back of the machine's deposit: with the market from its start, and ours again at its confirmed end."""
    if not Decimal(row.facts.get("deposit") or 0):
        return
    nano, begun_us = returned_deposit_nano(offer_from_record(row.facts)), meter.started_us
    await pay_deposit(session, meter, nano, occurred_at_us=begun_us, actor=actor, recorded_at_us=now_us)
    if is_over:
        at_us = max(row.ended_us or begun_us, begun_us)
        await return_deposit(session, meter, occurred_at_us=at_us, actor=actor, recorded_at_us=now_us)


async def book_refund(session: AsyncSession, row: RentalRow, meter: Meter, *, actor: str, now_us: int) -> None:
    """Book what the market does not charge for by its own terms, of a machine whose end is confirmed and booked."""
    at_us = max(row.ended_us or meter.started_us, meter.started_us)
    is_given = is_free(row.market, row.pricing, started_us=meter.started_us, ended_us=at_us, end_reason=row.end_reason)
    if is_given:
        await expect_refund(session, meter, reason="interrupted", actor=actor, recorded_at_us=now_us)


async def _moved(session: AsyncSession, rental: str, terms: dict[str, int]) -> int:
    ingress, egress = terms["ingress_nano_gb"], terms["egress_nano_gb"]
    if not ingress and not egress:
        return 0
    worker = await session.get(Worker, rental)
    load = terms["load_nano"] if worker is not None and worker.ready_us is not None else 0
    leased = (
        select(func.coalesce(func.sum(col(Shard.stop) - col(Shard.start)), 0))
        .join(LeaseRow, col(LeaseRow.shard_id) == col(Shard.id))
        .where(col(LeaseRow.placement_id) == rental)
    )
    uploaded = select(func.coalesce(func.sum(col(Part.size)), 0)).where(col(Part.placement_id) == rental)
    bytes_in, bytes_out = int(await session.scalar(leased) or 0), int(await session.scalar(uploaded) or 0)
    return load - (-(bytes_in * ingress + bytes_out * egress) // GB)
