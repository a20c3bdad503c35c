"""Where data goes besides the machine: the store, parts, logs, images and the control plane, as facts for the evaluator.

All but the store are the operator's statements in `[residency.…]`; what is not stated there and cannot be concluded is unknown,
which no policy that asks for it allows.
"""

from __future__ import annotations

from broker.settings import PathSettings, Settings
from broker.store_residency import STATED_FOR_US, store_facts
from solver.residency import FactEvidence, PathFacts

# What starts on the machine's own software takes no image.
WITHOUT_IMAGE = ("process", "token_api")


def data_paths(settings: Settings, now_us: int, launch: str) -> tuple[PathFacts, ...]:
    """The facts of each path but the machine, for work that starts by `launch`."""
    stated = settings.residency
    here = PathSettings(country=settings.local.country, operator="self", evidence="setting local.country")
    control_plane = _path("control_plane", stated.control_plane or here, now_us)
    own_image = stated.registry is None and launch in WITHOUT_IMAGE
    return (
        *_stores(settings, now_us),
        _path("log", stated.log or stated.control_plane or here, now_us),
        _path("registry", (stated.control_plane or here) if own_image else stated.registry or PathSettings(), now_us),
        control_plane,
    )


def _stores(settings: Settings, now_us: int) -> tuple[PathFacts, ...]:
    store = store_facts(settings, now_us)
    if store is None:
        return (PathFacts(path="storage"), PathFacts(path="checkpoint"))
    return tuple(
        PathFacts(
            path=path,
            country=store.country,
            subdivision=store.subdivision,
            operator=store.operator,
            jurisdictions=store.jurisdictions,
            evidence=_of_the_day(store.evidence, now_us),
        )
        for path in ("storage", "checkpoint")
    )


def _path(path: str, stated: PathSettings, now_us: int) -> PathFacts:
    if stated.country is None:
        return PathFacts(path=path, operator=stated.operator, jurisdictions=stated.jurisdictions)
    own = stated.jurisdictions or ((stated.country,) if stated.operator in (None, "self") else None)
    evidence = FactEvidence(kind="operator_statement", source=stated.evidence, valid_until_us=0)
    return PathFacts(
        path=path,
        country=stated.country,
        subdivision=stated.subdivision,
        operator=stated.operator or "self",
        jurisdictions=own,
        evidence=_of_the_day((evidence,), now_us),
    )


def _of_the_day(evidence: tuple[FactEvidence, ...], now_us: int) -> tuple[FactEvidence, ...]:
    """Valid until the end of the next day: the same all day, so that the same facts have one hash and are kept once."""
    until_us = now_us - now_us % STATED_FOR_US + 2 * STATED_FOR_US
    return tuple(FactEvidence(kind=each.kind, source=each.source, valid_until_us=until_us) for each in evidence)
