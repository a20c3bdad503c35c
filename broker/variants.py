"""Which configured profiles may serve a batch: several may serve one model, in other precisions or on other engines. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jobs.types import Finding
from workers.profile import ModelProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWishes:
    """What a batch accepts: besides the model that its lines name, `models`; None accepts every precision or profile."""

    models: Sequence[str] = ()
    precision: Sequence[str] | None = None
    engine_profile: str | None = None


@dataclass(frozen=True, slots=True)
class Variants:
    """The profiles that may serve, the preferred one first; or, when none may, findings that say what removed which."""

    profiles: tuple[ModelProfile, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Filter:
    """A wish or a fact that profiles are held against. `found` is what a profile has in its place."""

    code: str
    param: str
    wanted: str
    keeps: Callable[[ModelProfile], bool]
    found: Callable[[ModelProfile], str]


def variants(
    profiles: Mapping[str, ModelProfile], *, model: str, endpoint: str | None, wishes: ModelWishes
) -> Variants:
    """Every profile that serves one of the names, filtered by endpoint and wishes.

    Preferred are profiles of the lines' own model, then those of `wishes.models` in their order; of one model, first the
    profile of just that name, then by id. A name that nobody serves is a finding even when others are served: it is
    more likely mistyped than meant.
    """
    names = list(dict.fromkeys([model, *wishes.models]))
    unknown = [name for name in names if not serving(profiles, name)]
    if unknown:
        return Variants((), tuple(_unknown(profiles, name, is_asked=name == model) for name in unknown))
    left = list({each.id: each for name in names for each in serving(profiles, name)}.values())
    removed: list[str] = []
    for each in _filters(endpoint, wishes):
        out = [profile for profile in left if not each.keeps(profile)]
        left = [profile for profile in left if each.keeps(profile)]
        removed += [f"{each.wanted} removed {profile.id} ({each.found(profile)})" for profile in out]
        if not left:
            who = ", ".join(repr(name) for name in names)
            message = f"no configured profile of model {who} is left: {'; '.join(removed)}"
            return Variants((), (Finding(code=each.code, message=message, param=each.param),))
    return Variants(tuple(left), ())


def serving(profiles: Mapping[str, ModelProfile], name: str) -> list[ModelProfile]:
    """The profiles that serve what lines call `name`: under their public name or by their own id, the latter first."""
    found = [each for each in profiles.values() if name in (each.id, each.public_name)]
    return sorted(found, key=lambda each: (each.id != name, each.id))


def public_names(profiles: Mapping[str, ModelProfile]) -> list[str]:
    """Every name that lines may use."""
    return sorted({each.public_name for each in profiles.values()} | {each.id for each in profiles.values()})


def _filters(endpoint: str | None, wishes: ModelWishes) -> Iterator[_Filter]:
    if endpoint is not None:
        yield _Filter(
            "invalid_url",
            "url",
            f"endpoint {endpoint}",
            lambda each: endpoint in each.endpoints,
            lambda each: f"it serves {', '.join(each.endpoints)}",
        )
    if wishes.engine_profile is not None:
        yield _Filter(
            "no_variant",
            "x_broker.engine_profile",
            f"engine_profile {wishes.engine_profile}",
            lambda each: wishes.engine_profile in (each.id, each.id.partition("@")[2]),
            lambda each: f"engine {each.engine}",
        )
    accepted = wishes.precision
    if accepted is not None:
        yield _Filter(
            "no_variant",
            "x_broker.precision",
            f"precision {', '.join(accepted)}",
            lambda each: each.precision in accepted,
            lambda each: f"its precision is {each.precision}",
        )


def _unknown(profiles: Mapping[str, ModelProfile], name: str, *, is_asked: bool) -> Finding:
    known = ", ".join(public_names(profiles)) or "none"
    param = "model" if is_asked else "x_broker.models"
    message = f"model {name!r} is not served here; known models: {known}"
    return Finding(code="model_not_found", message=message, param=param)
