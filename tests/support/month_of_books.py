"""A month of books for finance's tests: machines at three markets, in two projects, with a leak, a correction and holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from broker.database import Database
from ledger.accrual import Meter, accrue
from ledger.budgets import grant
from ledger.event import Dims, Event, Facts, Kind, Line
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


def event(kind: Kind, key: str, lines: tuple[tuple[str, int] | tuple[str, int, str], ...], **facts: object) -> Event:
    return Event(
        key=f"{kind}:{key}", kind=kind, occurred_at_us=START + 10 * HOUR, actor="ada", dims=Dims(project="search"),
        lines=tuple(Line(account=account, nano=nano, unit=unit[0] if unit else "USD") for account, nano, *unit in lines),
        facts=Facts(**facts),  # type: ignore[arg-type]
    )  # fmt: skip


def other_events() -> list[Event]:
    """What is no meter reading: waste, a refund, a credit, a commitment with an hour used and an hour not, AKT, a deposit."""
    day = {"from_us": START, "until_us": START + 24 * HOUR}
    hour = {"from_us": START, "until_us": START + HOUR, "seconds": 3_600}
    return [
        event("usage.waste", "w", (("Expenses:Idle:Aws", 1_000), ("Expenses:Compute:Spot:Aws", -1_000)), market="aws",
              reason="idle"),
        event("refund.expected", "r", (("Assets:Receivable:Vast-ai", 50_000_000), ("Income:Refunds:Vast-ai", -50_000_000)),
              market="vast.ai"),
        event("credit.grant", "g", (("Assets:Credits:Gcp", 30 * 10**9), ("Income:Grants:Gcp", -30 * 10**9)), market="gcp"),
        event("usage.accrue", "gcp", (("Expenses:Compute:OnDemand:Gcp", 40 * 10**9), ("Liabilities:Accrued:Gcp", -40 * 10**9)),
              market="gcp", **hour),
        event("credit.apply", "a", (("Liabilities:Accrued:Gcp", 30 * 10**9), ("Assets:Credits:Gcp", -30 * 10**9)), market="gcp"),
        event("commitment.buy", "c", (("Assets:Commitments:Rsv-1", 48 * 10**9), ("Liabilities:Payable:Lambda", -48 * 10**9)),
              market="lambda", commitment="rsv-1", seconds=24 * 3_600, **day),
        event("commitment.amortise", "c:1", (("Expenses:Compute:Committed:Lambda", 15 * 10**8),
              ("Expenses:Unused:Rsv-1", 5 * 10**8), ("Assets:Commitments:Rsv-1", -2 * 10**9)),
              market="lambda", commitment="rsv-1", **hour),
        event("fx.buy", "x", (("Assets:Wallet:Akash", 10 * 10**9, "AKT"), ("Equity:FX:Liquidity:AKT", -10 * 10**9, "AKT"),
              ("Equity:FX:Liquidity:AKT", 8 * 10**9), ("Assets:Bank:Main", -8 * 10**9))),
        event("escrow.fund", "e", (("Assets:Escrow:Akash", 5 * 10**9, "AKT"), ("Assets:Wallet:Akash", -5 * 10**9, "AKT")),
              market="akash"),
        event("escrow.spend", "s", (("Assets:Escrow:Akash", -3 * 10**9, "AKT"), ("Equity:FX:Liquidity:AKT", 3 * 10**9, "AKT"),
              ("Expenses:Compute:Spot:Akash", 24 * 10**8), ("Equity:FX:Liquidity:AKT", -24 * 10**8)), market="akash", **hour),
        event("deposit.pay", "d", (("Assets:Deposit:Runpod", 10**9), ("Assets:Bank:Main", -10**9)), market="runpod"),
        event("usage.accrue", "t", (("Expenses:Compute:Tokens:Together", 10**9), ("Liabilities:Accrued:Together", -10**9)),
              market="together", pricing="token", quantity_nano=1_250_000_000, quantity_unit="MTOKEN"),
    ]  # fmt: skip
