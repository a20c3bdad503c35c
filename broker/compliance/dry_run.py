"""What a document would have meant: the last days' placements judged by it, and what the refused ones would cost elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.compliance.decisions import facts_by_hash
from broker.compliance.lifecycle import DEFAULT_NODE, Standing
from broker.compliance.pinning import subject_of
from broker.compliance.tables import DecisionRow
from broker.services import Services
from jobs.tables import Batch
from markets.tables import RentalRow
from solver.residency import Evaluator, Facts
from solver.residency.classes import raised
from solver.residency.document import Document
from solver.residency.effective import concerns, effective

DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Placement:
    """A batch that was given work at a rental: on which facts, and at which price an hour (nano-USD)."""

    batch: str
    rental: str
    offer_key: str
    accelerator: str
    node: str
    data_class: str
    at_us: int
    facts: Facts
    price_nano_hour: int


@dataclass(frozen=True, slots=True)
class Offered:
    """What could be had instead: its accelerator, its price an hour and its facts."""

    accelerator: str
    price_nano_hour: int
    facts: Facts


async def placements(session: AsyncSession, services: Services, known: Standing, since_us: int) -> list[Placement]:
    """Each (batch, rental) that was leased to since then, by the first such decision."""
    rows = (
        await session.scalars(
            select(DecisionRow)
            .where(
                col(DecisionRow.point) == "lease",
                col(DecisionRow.outcome) == "allow",
                col(DecisionRow.at_us) >= since_us,
            )
            .order_by(col(DecisionRow.seq))
        )
    ).all()
    first = {(row.batch, row.rental): row for row in reversed(rows)}
    facts = await facts_by_hash(session, sorted({row.facts_hash for row in first.values()}))
    batches = {
        each.id: each
        for each in await session.scalars(select(Batch).where(col(Batch.id).in_({row.batch for row in rows})))
    }
    machines = {
        each.id: each
        for each in await session.scalars(select(RentalRow).where(col(RentalRow.id).in_({row.rental for row in rows})))
    }
    found = []
    for row in sorted(first.values(), key=lambda each: each.seq):
        batch, machine = batches.get(row.batch), machines.get(row.rental or "")
        if batch is None or machine is None or row.facts_hash not in facts:
            continue
        subject = subject_of(known, services.settings, batch.project)
        found.append(
            Placement(
                batch=batch.id,
                rental=machine.id,
                offer_key=machine.offer_key,
                accelerator=str(machine.facts["accelerator"]["name"]),
                node=subject.node,
                data_class=raised(subject.data_class, (batch.wishes or {}).get("data_class")),
                at_us=row.at_us,
                facts=facts[row.facts_hash],
                price_nano_hour=machine.price_nano_hour,
            )
        )
    return found


def dry_run(
    document: Document, nodes: Sequence[str], past: Sequence[Placement], offers: Sequence[Offered], at_us: int
) -> dict[str, Any]:
    """Pure: which placements it would have refused, and by how much an hour of all would cost more, had the refused ones
    been at the cheapest offer of now with the same accelerator that it allows. None where there is no such offer."""
    judges: dict[tuple[str, str], Evaluator] = {}
    refusals, before, after = [], 0, 0
    has_place = True
    mine = [each for each in past if any(one == DEFAULT_NODE or concerns(one, each.node) for one in nodes)]
    for each in mine:
        key = (each.data_class, each.node)
        if key not in judges:
            judges[key] = Evaluator(effective([document], data_class=each.data_class, project=each.node))
        decision = judges[key].decide(each.facts, each.at_us)
        before += each.price_nano_hour
        if decision.outcome == "allow":
            after += each.price_nano_hour
            continue
        first = decision.reasons[0]
        refusals.append(
            {"batch": each.batch, "rental": each.rental, "offer": each.offer_key, "rule": first.rule_id, "field": first.field,
             "found": first.found}
        )  # fmt: skip
        allowed = [
            one.price_nano_hour
            for one in offers
            if one.accelerator == each.accelerator and not judges[key].codes(one.facts, at_us)
        ]
        has_place = has_place and bool(allowed)
        after += min(allowed, default=0)
    change = None if not before or not has_place else Decimal(after - before) * 100 / Decimal(before)
    return {
        "policy": document.label,
        "placements": len(mine),
        "refused": len(refusals),
        "cost_change_percent": None if change is None else f"{change:.1f}",
        "sentence": _sentence(len(refusals), len(mine), change, has_place=has_place),
        "refusals": refusals,
    }


def _sentence(refused: int, placements: int, change: Decimal | None, *, has_place: bool) -> str:
    cost = "" if change is None else f", cost {change:+.1f} %"
    if not has_place:
        cost = ", and for some there is no offer now that it allows"
    return f"of {placements} placements it would have refused {refused}{cost}"


def as_offered(records: Sequence[tuple[Mapping[str, Any], int, Facts]]) -> list[Offered]:
    """Offers with a known price, from (record, price an hour, facts)."""
    return [Offered(str(record["accelerator"]), price, facts) for record, price, facts in records if price > 0]
