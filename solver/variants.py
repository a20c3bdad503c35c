"""Works that more than one model or precision may serve: as one problem, and as the plan decided them.

A work with alternatives is looked at as *twins*: works that are alike but for model and precision, each with an id of its own, of
which a plan serves one. Twins are judged by the same rules as any work, each by its own model's facts, fit and speeds. What is
decided is then the queue in which each work has the variant that serves it (`as_run`), and everything after is of that queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from solver.residency.types import ModelFacts
from solver.types import Plan, Running, Snapshot, Variant, Work

# Between a work's id and the number of its twin; it sorts before whatever else may follow an id.
MARK = "\x00"


@dataclass(frozen=True, slots=True)
class Twins:
    """A snapshot whose works with alternatives stand there once for each variant. `of` has the work's id of each twin, and the
    number of its variant: 0 is the work's own."""

    snapshot: Snapshot
    of: Mapping[str, tuple[str, int]]

    @property
    def groups(self) -> dict[str, str]:
        """By twin, the work that it is one of."""
        return {twin: base for twin, (base, _) in self.of.items()}


def has_variants(snapshot: Snapshot) -> bool:
    """Whether there is anything to choose."""
    return any(work.alternatives for work in snapshot.works)


def variants_of(work: Work) -> tuple[tuple[str, str], ...]:
    """(model, precision) of everything that may serve the work, its own first."""
    return ((work.model, work.precision), *((each.model, each.precision) for each in work.alternatives))


def faces(works: Iterable[Work]) -> list[Work]:
    """Each work once for each of its variants, for whoever asks which models are queued, and what for."""
    return [_with(work, number) for work in works for number in range(len(work.alternatives) + 1)]


def as_run(snapshot: Snapshot, plan: Plan) -> Snapshot:
    """The snapshot with each work as the plan serves it, and nothing left to choose. The plan was made for `snapshot`, by its
    hash; what it says of works, offers and rentals is of what this returns."""
    chosen = {each.work_id: (each.model, each.precision) for each in plan.variants}
    numbers = {
        work.id: variants_of(work).index(chosen[work.id])
        for work in snapshot.works
        if work.alternatives and work.id in chosen
    }
    return decided(snapshot, numbers)


def decided(snapshot: Snapshot, numbers: Mapping[str, int]) -> Snapshot:
    """The snapshot where each work has the variant of this number, its own where none is given."""
    if not has_variants(snapshot):
        return snapshot
    models = dict(snapshot.models)
    works = []
    for work in snapshot.works:
        number = numbers.get(work.id, 0)
        if number:
            _set_facts(models, work.id, work.alternatives[number - 1])
        works.append(_with(work, number))
    return msgspec.structs.replace(snapshot, works=tuple(works), models=models)


def twins(snapshot: Snapshot) -> Twins:
    """Every work with alternatives once for each of its variants. The first twin has the work's own id."""
    works: list[Work] = []
    of: dict[str, tuple[str, int]] = {}
    models = dict(snapshot.models)
    for work in snapshot.works:
        for number in range(len(work.alternatives) + 1):
            twin = msgspec.structs.replace(_with(work, number), id=_id(work, number))
            works.append(twin)
            if work.alternatives:
                of[twin.id] = (work.id, number)
            if number:
                _set_facts(models, twin.id, work.alternatives[number - 1])
    more: dict[str, list[str]] = {}
    for twin_id, (base, number) in of.items():
        if number:
            more.setdefault(base, []).append(twin_id)
    refusals = [
        msgspec.structs.replace(each, work_id=name)
        for each in snapshot.refusals
        for name in (each.work_id, *more.get(each.work_id, ()))
    ]
    doubled = msgspec.structs.replace(
        snapshot,
        works=tuple(sorted(works, key=lambda each: each.id)),
        models=models,
        refusals=tuple(refusals),
        running=tuple(_covering(each, more) for each in snapshot.running),
        held=(),
    )
    return Twins(doubled, of)


def _id(work: Work, number: int) -> str:
    return f"{work.id}{MARK}{number}" if number else work.id


def _with(work: Work, number: int) -> Work:
    if not work.alternatives:
        return work
    model, precision = variants_of(work)[number]
    return msgspec.structs.replace(work, model=model, precision=precision, alternatives=())


def _set_facts(models: dict[str, ModelFacts], work_id: str, variant: Variant) -> None:
    """What is known of the work's own model is not known of another."""
    if variant.facts is None:
        models.pop(work_id, None)
    else:
        models[work_id] = variant.facts


def _covering(rental: Running, more: Mapping[str, list[str]]) -> Running:
    if rental.covered is None:
        return rental
    names = [name for each in rental.covered for name in (each, *more.get(each, ()))]
    return msgspec.structs.replace(rental, covered=tuple(names))
