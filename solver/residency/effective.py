"""The policy of one batch: the documents from the root of the tree down to its project, for its class of data, with waivers.

Each document is a layer: of each that allows anything, one allow must apply. So a document further down can only narrow, and
what order they come in makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from solver.residency.classes import DATA_CLASSES
from solver.residency.document import Document, DocumentRule
from solver.residency.types import Clause, Held, Operator, Policy, Window

PUBLIC_RULE = "public"


@dataclass(frozen=True, slots=True)
class Waiver:
    """One rule of one document that is not asked of some projects, until it expires: approved and never without an end."""

    policy: str
    rule: str
    projects: str
    from_us: int
    until_us: int


def effective(
    documents: Sequence[Document], *, data_class: str, project: str, waivers: Iterable[Waiver] = ()
) -> Policy:
    """What holds for data of `data_class` in `project` (its path in the tree: `org/team/name`). The documents' order does not
    matter. Data of class public needs no allow, so denies and requirements alone are asked of it; every other class does."""
    ordered = sorted(documents, key=lambda each: each.label)
    granted = sorted(waivers, key=lambda each: (each.policy, each.rule, each.from_us, each.until_us))
    clauses = [clause for document in ordered for clause in _clauses(document, data_class, project, granted)]
    if data_class == "public":
        clauses = [each for each in clauses if each.effect != "permit"]
        clauses.append(Clause(id=PUBLIC_RULE, effect="permit", layer=PUBLIC_RULE))
    return Policy(
        name="+".join(each.name for each in ordered),
        clauses=tuple(clauses),
        operators=_operators(ordered),
        layers=tuple(each.label for each in ordered),
        data_class=data_class,
    )


def refusing(name: str, version: int) -> Document:
    """Stands for a document that was approved and cannot be read any more: it lets nothing pass, of any class, anywhere."""
    label = f"{name}@{version}"
    clause = Clause(id=f"{name}.unreadable", effect="require", layer=label, alternatives=())
    rule = DocumentRule(id=clause.id, effect="require", classes=DATA_CLASSES, projects=(), clauses=(clause,))
    return Document(name=name, version=version, title="cannot be read any more", rules=(rule,), operators=())


def concerns(pattern: str, project: str) -> bool:
    """Whether a pattern means this project: by its path in the tree, or by its name alone. A node means all below it.

    >>> concerns("acme/*", "acme/ml/chat"), concerns("chat", "acme/ml/chat"), concerns("acme", "acme/ml/chat")
    (True, True, True)
    >>> concerns("acme/m", "acme/ml/chat")
    False
    """
    parts = project.split("/")
    nodes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    return pattern == parts[-1] or any(fnmatchcase(node, pattern) for node in nodes)


def _clauses(document: Document, data_class: str, project: str, waivers: Sequence[Waiver]) -> Iterator[Clause]:
    found = list(_applying(document, data_class, project, waivers))
    yield from found
    if _permits_a_machine(clause for rule in document.rules for clause in rule.clauses) and not _permits_a_machine(
        found
    ):
        # it allows other data, or other projects: to this it allows nothing, whatever further documents say
        yield Clause(id=f"{document.name}.nothing", effect="permit", layer=document.label, alternatives=())


def _permits_a_machine(clauses: Iterable[Clause]) -> bool:
    return any(each.effect == "permit" and "machine" in each.paths for each in clauses)


def _applying(document: Document, data_class: str, project: str, waivers: Sequence[Waiver]) -> Iterator[Clause]:
    for rule in document.rules:
        if data_class not in rule.classes:
            continue
        if rule.projects and not any(concerns(each, project) for each in rule.projects):
            continue
        yield from _waived(document, rule, project, waivers)


def _waived(document: Document, rule: DocumentRule, project: str, waivers: Sequence[Waiver]) -> Iterator[Clause]:
    windows = tuple(
        Window(from_us=each.from_us, until_us=each.until_us)
        for each in waivers
        if (each.policy, each.rule) == (document.name, rule.id) and concerns(each.projects, project)
    )
    for clause in rule.clauses:
        if not windows:
            yield clause
        elif clause.effect == "permit":
            # what a waived allow asks is not asked: while it lasts, everything passes it
            yield clause
            for window in windows:
                yield _replaced(clause, alternatives=((),), from_us=window.from_us, until_us=window.until_us)
        else:
            yield _replaced(clause, waived=windows)


def _replaced(clause: Clause, **changed: object) -> Clause:
    fields = {name: getattr(clause, name) for name in clause.__struct_fields__} | changed
    return Clause(**fields)


def _operators(documents: Sequence[Document]) -> tuple[Operator, ...]:
    """What all documents state, by operator. Of two statements about the same certificate, the one that ends first counts."""
    held: dict[str, tuple[dict[str, int | None], dict[str, int | None]]] = {}
    for operator in (each for document in documents for each in document.operators):
        certifications, agreements = held.setdefault(operator.name, ({}, {}))
        for known, stated in ((certifications, operator.certifications), (agreements, operator.agreements)):
            for each in stated:
                known[each.id] = (
                    _sooner(known[each.id], each.valid_until_us) if each.id in known else each.valid_until_us
                )
    return tuple(
        Operator(name=name, certifications=_held(certifications), agreements=_held(agreements))
        for name, (certifications, agreements) in sorted(held.items())
    )


def _sooner(one: int | None, other: int | None) -> int | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _held(known: dict[str, int | None]) -> tuple[Held, ...]:
    return tuple(Held(id=each, valid_until_us=until_us) for each, until_us in sorted(known.items()))
