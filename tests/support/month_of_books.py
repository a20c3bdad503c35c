"""A month of books for finance's tests: machines at three markets, in two projects, with a leak, a correction and holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from broker.database import Database
from ledger.accrual import Meter, accrue
from ledger.budgets import grant
from ledger.holds import open_hold, void_hold
from markets.offer import Accelerator, Offer, OfferKey
from markets.offer_record import record_from_offer
from markets.tables import RentalRow

START = 1_793_491_200_000_000  # 2026-11-01T00:00:00Z
HOUR = 3_600_000_000
PERIOD = "2026-11"


@dataclass(frozen=True)
class Machine:
    rental: str
    market: str
    pricing: str
    project: str
    price_nano: int
    seconds: tuple[int, ...]  # readings; the last is the end
    granularity_s: int = 1
    minimum_s: int = 0
    started_us: int = START


MACHINES = (
    Machine("rental_a", "aws", "spot", "search", 12_345_678_901, (3_600, 7_201, 10_000)),
    Machine("rental_b", "sandbox", "on_demand", "search", 1_000_000_001, (60, 3_599), minimum_s=60),
    Machine(
        "rental_c", "vast.ai", "bid", "ads", 333_333_333, (1, 2, 3, 5_000, 4_000)
    ),  # the end is below what was read
    Machine("rental_d", "local", "on_demand", "ads", 7_700, (7,)),
)


def offer_of(machine: Machine) -> Offer:
    key = OfferKey(machine.market, "eu-west-1", "eu-west-1a", "p5.48xlarge", "H100", 8, machine.pricing)  # type: ignore[arg-type]
    return Offer(
        key=key,
        launch="vm",
        accelerator=Accelerator("nvidia", "H100", "SXM", 81_559, 8),
        currency="USD",
        price=Decimal(machine.price_nano).scaleb(-9),
        observed_at=datetime(2026, 11, 1, tzinfo=UTC),
        source="test",
        raw_sha256="0" * 64,
        country="IE",
        operator=f"{machine.market} host",
        evidence=(),
        boot_s=int(timedelta(seconds=1).total_seconds()),
    )


def rental_row(machine: Machine) -> RentalRow:
    offer = offer_of(machine)
    return RentalRow(
        id=machine.rental, market=machine.market, offer_key=str(offer.key), project=machine.project, model="tiny",
        precision="fp16", state="ended", price_nano_hour=machine.price_nano, pricing=machine.pricing,
        granularity_s=machine.granularity_s, minimum_s=machine.minimum_s, facts=record_from_offer(offer),
        purpose={"batches": [f"batch_{machine.project}"]}, market_facts={}, created_us=machine.started_us,
        started_us=machine.started_us, ended_us=machine.started_us + machine.seconds[-1] * 1_000_000, settled=True,
    )  # fmt: skip


def meter_of(machine: Machine) -> Meter:
    return Meter(
        rental=machine.rental, offer_key=str(offer_of(machine).key), market=machine.market, pricing=machine.pricing,
        project=machine.project, batch=None, price_nano_hour=machine.price_nano, started_us=machine.started_us,
        granularity_s=machine.granularity_s, minimum_s=machine.minimum_s,
    )  # fmt: skip


async def book_month(database: Database, machines: tuple[Machine, ...] = MACHINES) -> None:
    """Post it all, as the accrual loop would."""
    async with database.transaction() as session:
        await grant(session, grant_id="g", project="search", nano=10**15, occurred_at_us=START, actor="test")
        for machine in machines:
            session.add(rental_row(machine))
            await session.flush()
            await open_hold(
                session, hold_id=machine.rental, nano=10**12, project=machine.project, batch=None, rental=machine.rental,
                offer_key=str(offer_of(machine).key), occurred_at_us=machine.started_us, actor="test",
            )  # fmt: skip
            for number, seconds in enumerate(machine.seconds, start=1):
                until = machine.started_us + seconds * 1_000_000
                final = number == len(machine.seconds)
                await accrue(
                    session, meter_of(machine), until_us=until, final=final, actor="test", recorded_at_us=until
                )
            ended_us = machine.started_us + machine.seconds[-1] * 1_000_000
            await void_hold(session, hold_id=machine.rental, occurred_at_us=ended_us, actor="test")
