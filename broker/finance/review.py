"""The weekly spend review, and the month's chargeback statement: what finance reads on Monday, and what it bills within the
house. Every sum in them is the books', to the nano."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.control.convert import usd
from broker.finance.anomaly_watch import anomalies, labels
from broker.finance.policy_costs import policy_costs, section
from broker.finance.reconciliation import exceptions
from broker.finance.report import Report, Section
from broker.finance.spend import DAY_US, NONE, Cell, Facts, cells, facts_of, grouped, usd_sums
from broker.hold_expiry import Behind, behind_of
from jobs.tables import Part
from ledger.allot import allot
from ledger.focus.charge import metered
from ledger.focus.table import period_bounds
from ledger.holds import open_holds
from ledger.movers import Week, movers
from ledger.positions import remaining
from ledger.tables import Entry
from markets.tables import OfferRow

WEEK_US = 7 * DAY_US
# What was paid for in vain, as accounts call it.
WASTE = ("idle", "startup", "lost", "retried", "zombie", "unused", "forfeited")
STALE_US = DAY_US


async def weekly(session: AsyncSession, *, until_us: int, now_us: int, project: str | None = None) -> Report:
    """The week that ends at `until_us` (a UTC midnight, usually Monday's), against the one before it."""
    begun = until_us - WEEK_US
    found = await cells(session, since_us=begun - WEEK_US, until_us=until_us, project=project)
    facts = await facts_of(session, found, ("project",))
    now = [cell for cell in found if cell.step >= begun // DAY_US]
    before = [cell for cell in found if cell.step < begun // DAY_US]
    total, earlier = _sum(now), _sum(before)
    sections = [
        _spend(now, before, facts, "project"),
        _spend(now, before, facts, "provider"),
        await _movers(session, now, before, facts, begun, until_us, project),
        await _budgets(session, now, until_us, project),
        await _anomalies(session, begun, until_us, now_us, project),
        _waste(now, facts),
        section(policy_costs(now, facts)),
        await _stale_holds(session, now_us, project),
        await _recommendations(session, now, facts),
        await _open_variances(session, project),
    ]
    return Report(
        title="Weekly spend review",
        facts=[
            ("week", f"{_day(begun)} to {_day(until_us - 1)} (UTC)"),
            ("spent USD", usd(total)),
            ("the week before USD", usd(earlier)),
            ("change USD", usd(total - earlier)),
            ("without a project USD", usd(_sum([cell for cell in now if cell.project is None]))),
        ],
        sections=sections,
    )


def _spend(now: Sequence[Cell], before: Sequence[Cell], facts: Facts, key: str) -> Section:
    this, last = grouped(now, facts, [key]), grouped(before, facts, [key])
    rows = [
        (name, usd(this.get((name,), 0)), usd(last.get((name,), 0)), usd(this.get((name,), 0) - last.get((name,), 0)))
        for name in sorted({value for (value,) in (*this, *last)}, key=lambda value: (-this.get((value,), 0), value))
    ]
    return Section(f"Spend by {key}", (key, "USD", "week before USD", "change USD"), rows)


async def _movers(
    session: AsyncSession, now: Sequence[Cell], before: Sequence[Cell], facts: Facts, begun: int, until: int, project: str | None
) -> Section:  # fmt: skip
    new = await _weeks(session, now, facts, begun, until, project)
    old = await _weeks(session, before, facts, begun - WEEK_US, begun, project)
    rows = [
        (
            each.name,
            *(
                usd(part)
                for part in (each.nano, each.price_nano, each.volume_nano, each.mix_nano, each.efficiency_nano)
            ),
        )
        for each in movers(old, new)
    ]
    return Section(
        "Movers", ("model at provider", "change USD", "price USD", "volume USD", "mix USD", "efficiency USD"), rows,
        "price + volume + mix + efficiency = change, exactly; volume is tokens, or billed time where there are none",
    )  # fmt: skip


async def _weeks(
    session: AsyncSession, found: Sequence[Cell], facts: Facts, begun: int, until: int, project: str | None
) -> dict[str, Week]:
    """By model at provider: what it cost, billed seconds out of the meters' keys, tokens of the parts that count."""
    nanos: dict[str, int] = defaultdict(int)
    seconds: dict[str, int] = defaultdict(int)
    tokens: dict[str, int] = defaultdict(int)
    for (model, provider), nano in grouped(found, facts, ["model", "provider"]).items():
        nanos[f"{model} at {provider}"] += nano
    names = {row.id: f"{row.model or NONE} at {row.market}" for row in facts.rentals.values()}
    keys = select(col(Entry.key), col(Entry.rental)).where(
        col(Entry.occurred_at_us) >= begun, col(Entry.occurred_at_us) < until, col(Entry.key).startswith("accrue:")
    )
    if project is not None:
        keys = keys.where(col(Entry.project) == project)
    for key, rental in (await session.execute(keys)).all():
        interval = metered(key, rental)
        if interval and rental in names:
            seconds[names[rental]] += interval[1] - interval[0]
    used = (
        select(col(Part.placement_id), func.sum(col(Part.prompt_tokens) + col(Part.completion_tokens)))
        .where(col(Part.counted).is_(True), col(Part.committed_us) >= begun, col(Part.committed_us) < until)
        .group_by(col(Part.placement_id))
    )
    for rental, count in (await session.execute(used)).all():
        if rental in names:
            tokens[names[rental]] += int(count)
    return {name: Week(nanos[name], max(0, seconds[name]), tokens[name]) for name in {*nanos, *seconds, *tokens}}


async def _budgets(session: AsyncSession, now: Sequence[Cell], until_us: int, project: str | None) -> Section:
    """Each project's budget against where the month ends if the days to come are like the last seven."""
    month = datetime.fromtimestamp((until_us - 1) // 1_000_000, UTC).strftime("%Y-%m")
    first, after = (each * 1_000_000 for each in period_bounds(month))
    spent = grouped(await cells(session, since_us=first, until_us=until_us, project=project), Facts({}), ["project"])
    week = grouped(now, Facts({}), ["project"])
    days_left = max(0, (after - until_us) // DAY_US)
    rows = []
    for name in sorted({value for (value,) in (*spent, *week)} - {NONE}):
        left = await remaining(session, name)
        forecast = spent.get((name,), 0) + week.get((name,), 0) * days_left // 7
        to_come = forecast - spent.get((name,), 0)
        verdict = "no budget" if left is None else "within" if to_come <= left else "runs out"
        rows.append(
            (name, usd(spent.get((name,), 0)), usd(forecast), "no limit" if left is None else usd(left), verdict)
        )
    columns = ("project", "month so far USD", "month's end USD", "budget left USD", "forecast")
    return Section(
        "Budget against forecast", columns, rows, f"{month}: the days left are taken to be like the last seven"
    )


async def _anomalies(session: AsyncSession, begun: int, until: int, now_us: int, project: str | None) -> Section:
    found = {
        each.id: each
        for day in range(begun, until, DAY_US)
        for each in await anomalies(session, day_us=day, now_us=min(now_us, day + DAY_US), project=project)
    }
    told = await labels(session, list(found))
    rows = [
        (each.id, _day(each.at_us), each.scope, each.rule, usd(each.actual_nano), usd(each.expected_nano), each.message,
         ", ".join(f"{part.name} {usd(part.nano)}" for part in each.contributors),
         told[each.id].label if each.id in told else "open")
        for each in found.values()
    ]  # fmt: skip
    columns = ("id", "day", "scope", "rule", "USD", "expected USD", "what", "contributors", "label")
    return Section("Anomalies", columns, rows, "" if rows else "none")


def _waste(now: Sequence[Cell], facts: Facts) -> Section:
    total = _sum(now) or 1
    sums = grouped(now, facts, ["category", "project"])
    rows = [
        (category, project, usd(nano), f"{nano * 1000 // total / 10:.1f} %")
        for (category, project), nano in usd_sums(sums)
        if category in WASTE
    ]
    return Section("Waste", ("kind", "project", "USD", "of the week"), rows, "" if rows else "none was booked")


async def _stale_holds(session: AsyncSession, now_us: int, project: str | None) -> Section:
    held = [hold for hold in await open_holds(session, project=project) if now_us - hold.opened_at_us >= STALE_US]
    behind = await behind_of(session, held)
    rows = [
        (hold.id, hold.project, usd(hold.remaining_nano), _day(hold.opened_at_us), _covers(behind.get(hold.id)))
        for hold in held
    ]
    columns = ("hold", "project", "held USD", "since", "for")
    return Section("Stale holds", columns, rows, "" if rows else "none is older than a day")


def _covers(behind: Behind | None) -> str:
    if behind is None:
        return "nothing that is known: it expires"
    return f"what is {behind.state}" + ("" if behind.over_us is None else " and settled: it expires")


async def _recommendations(session: AsyncSession, now: Sequence[Cell], facts: Facts) -> Section:
    """Each with its evidence and what it would have saved in the week that is reviewed."""
    rows = [*_less_waste(now, facts), *await _spot_instead(session, now, facts)]
    columns = ("what", "project", "would have saved USD", "evidence")
    return Section("Recommendations", columns, rows, "" if rows else "none")


def _less_waste(now: Sequence[Cell], facts: Facts) -> list[tuple[str, str, str, str]]:
    waste: dict[str, int] = defaultdict(int)
    whole: dict[str, int] = defaultdict(int)
    for (category, project), nano in grouped(now, facts, ["category", "project"]).items():
        whole[project] += nano
        waste[project] += nano if category in WASTE else 0
    return [
        ("fewer, fuller machines: a third of the spend was for nothing", project, usd(nano), f"of {usd(whole[project])}")
        for project, nano in sorted(waste.items())
        if nano * 3 >= whole[project] > 0
    ]  # fmt: skip


async def _spot_instead(session: AsyncSession, now: Sequence[Cell], facts: Facts) -> list[tuple[str, str, str, str]]:
    """On-demand machines of which the market also has spot ones now, for less."""
    query = select(col(OfferRow.key), col(OfferRow.price_nano_hour)).where(
        col(OfferRow.pricing) == "spot", col(OfferRow.gone_us).is_(None), col(OfferRow.quarantined).is_(None)
    )
    spot = {key.rpartition("/")[0]: price for key, price in (await session.execute(query)).all() if price}
    saved: dict[tuple[str, str], int] = defaultdict(int)
    for (rental, project), nano in grouped(now, facts, ["rental", "project"]).items():
        row = facts.rentals.get(rental)
        price = None if row is None or row.pricing != "on_demand" else spot.get(row.offer_key.rpartition("/")[0])
        if row is not None and price is not None and 0 < price < row.price_nano_hour:
            saved[row.offer_key, project] += nano * (row.price_nano_hour - price) // row.price_nano_hour
    return [
        ("spot instead of on-demand", project, usd(nano), key)
        for (key, project), nano in sorted(saved.items())
        if nano > 0
    ]


async def _open_variances(session: AsyncSession, project: str | None) -> Section:
    waiting = [] if project else [each for each in await exceptions(session) if each.state != "accepted"]
    rows = [(each.id, each.provider, each.subject, each.code, usd(each.nano), each.state) for each in waiting]
    columns = ("exception", "provider", "what", "why", "USD", "state")
    return Section("Open variances", columns, rows, "" if rows else "none")


async def chargeback(session: AsyncSession, *, period: str, project: str | None = None) -> Report:
    """A month's statement by project: direct and shared cost, and what has no project, spread in proportion and shown; the
    statement sums to the books to the nano, and in cents to the rounded whole."""
    first, after = (each * 1_000_000 for each in period_bounds(period))
    found = await cells(session, since_us=first, until_us=after)
    facts = Facts({})
    by = grouped(found, facts, ["project", "category"])
    names = sorted({name for name, _ in by} - {NONE})
    direct, shared = _split(by)
    loose = direct.get(NONE, 0) + shared.get(NONE, 0)
    spread = _spread(loose, [max(0, direct[name] + shared[name]) for name in names])
    totals = [direct[name] + shared[name] + part for name, part in zip(names, spread, strict=True)]
    cents = _in_cents(totals)
    rows = [
        (name, usd(direct[name]), usd(shared[name]), usd(part), usd(total), f"{cent // 100}.{cent % 100:02}")
        for name, part, total, cent in zip(names, spread, totals, cents, strict=True)
        if project in (None, name)
    ]
    whole = sum(totals) if names else loose
    head = [("month", f"{period} (UTC)"), ("method", "in proportion to each project's own cost")]
    if project is None:
        head += [
            ("books USD", usd(_sum(found))),
            ("statement USD", usd(whole)),
            ("of it without a project USD", usd(loose)),
        ]
    columns = ("project", "direct USD", "shared USD", "unallocated share USD", "total USD", "to pay USD")
    return Report("Chargeback statement", head, [Section("Projects", columns, rows)])


def _split(by: Mapping[tuple[str, ...], int]) -> tuple[dict[str, int], dict[str, int]]:
    """Direct is what was of use; shared is waste, variance, fees, refunds: what nobody ordered."""
    direct: dict[str, int] = defaultdict(int)
    shared: dict[str, int] = defaultdict(int)
    for (name, category), nano in by.items():
        (direct if category == "compute" else shared)[name] += nano
    return direct, shared


def _spread(nano: int, weights: Sequence[int]) -> list[int]:
    if not weights:
        return []
    shares = allot(abs(nano), weights)
    return shares if nano >= 0 else [-each for each in shares]


def _in_cents(totals: Sequence[int]) -> list[int]:
    """Cents that sum to the rounded whole: those that lost most by rounding down get the cents that are left."""
    cent = 10_000_000
    down = [nano // cent for nano in totals]
    left = (sum(totals) + cent // 2) // cent - sum(down)
    by_rest = sorted(range(len(totals)), key=lambda at: -(totals[at] % cent))
    for at in by_rest[: max(0, left)]:
        down[at] += 1
    return down


def _sum(found: Sequence[Cell]) -> int:
    return sum(cell.nano for cell in found)


def _day(micros: int) -> str:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).strftime("%Y-%m-%d")
