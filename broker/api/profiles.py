"""Engine profiles, and how long machines took to be of use: what the planner chooses among and counts with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, Field

from broker.api.registry import EVERYONE, Call, Route, route
from broker.start_up import WINDOW, newest, upper_quartile
from broker.tables import StartUp
from broker.variants import public_names
from jobs.clock import MICROSECONDS, db_now
from workers.engines import SERVERS, engine_spec
from workers.profile import ModelProfile


class Profile(BaseModel):
    """One way to serve a model: what `x_broker.engine_profile` names. `options` are those that the settings set."""

    id: str
    object: Literal["engine_profile"] = "engine_profile"
    serves: str
    engine: str
    precision: str
    image: str | None
    accelerators: int = Field(description="how many serve together; an offer with fewer is not eligible")
    options: dict[str, Any]
    command: list[str] | None = Field(description="what the agent starts; null where the engine runs already")
    batch_invariant: bool = Field(description="an answer at temperature 0 does not depend on its neighbours")


class ProfileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Profile]


class PhaseTimes(BaseModel):
    """Seconds; `cautious` is the upper quartile of the newest 20."""

    cautious: float
    median: float
    newest: float


class StartUpTimes(BaseModel):
    """Observations of one (market, place, image, model, accelerator): what a plan there counts with."""

    market: str
    place: str
    image: str
    model: str
    accelerator: str
    observations: int
    observed_at: int
    boot: PhaseTimes
    ready: PhaseTimes
    pull: PhaseTimes | None
    download: PhaseTimes | None
    load: PhaseTimes | None
    warm_up: PhaseTimes | None
    first_line: PhaseTimes | None


class StartUpList(BaseModel):
    object: Literal["list"] = "list"
    data: list[StartUpTimes]


async def list_profiles(call: Call) -> ProfileList:
    """List the engine profiles by which models are served."""
    profiles = call.services.models
    order = {name: place for place, name in enumerate(public_names(profiles))}
    return ProfileList(
        data=[_shape(each) for each in sorted(profiles.values(), key=lambda p: (order[p.public_name], p.id))]
    )


async def list_timings(call: Call) -> StartUpList:
    """List how long machines took from renting to the first answer, by market, place, image, model and accelerator."""
    async with call.services.database.transaction() as session:
        rows = await newest(session, await db_now(session))
    groups: dict[tuple[str, ...], list[StartUp]] = {}
    for row in rows:
        groups.setdefault((row.market, row.place, row.image, row.model, row.accelerator), []).append(row)
    return StartUpList(data=[_times(groups[key]) for key in sorted(groups)])


def _shape(profile: ModelProfile) -> Profile:
    argv = engine_spec(profile)["argv"] if profile.engine in SERVERS else None
    return Profile(
        id=profile.id,
        serves=profile.public_name,
        engine=profile.engine,
        precision=profile.precision,
        image=profile.image,
        accelerators=profile.options.accelerators,
        options=_set_options(profile),
        command=argv,
        batch_invariant=profile.options.batch_invariant,
    )


def _set_options(profile: ModelProfile) -> dict[str, Any]:
    told: Mapping[str, Any] = asdict(profile.options)
    return {name: told[name] for name in profile.options.set_fields}


def _times(rows: Sequence[StartUp]) -> StartUpTimes:
    """`rows` are of one group, newest first."""
    first = rows[0]
    return StartUpTimes(
        market=first.market,
        place=first.place,
        image=first.image,
        model=first.model,
        accelerator=first.accelerator,
        observations=len(rows),
        observed_at=first.observed_us // MICROSECONDS,
        boot=_phase([row.boot_ms for row in rows]),
        ready=_phase([row.ready_ms for row in rows]),
        pull=_known([row.pull_ms for row in rows]),
        download=_known([row.download_ms for row in rows]),
        load=_known([row.load_ms for row in rows]),
        warm_up=_known([row.warm_up_ms for row in rows]),
        first_line=_known([row.first_line_ms for row in rows]),
    )


def _known(found_ms: Sequence[int | None]) -> PhaseTimes | None:
    known = [ms for ms in found_ms if ms is not None]
    return _phase(known) if known else None


def _phase(found_ms: Sequence[int]) -> PhaseTimes:
    window = [ms / 1000 for ms in found_ms[:WINDOW]]
    middle = sorted(window)[(len(window) - 1) // 2]
    return PhaseTimes(cautious=upper_quartile(window), median=middle, newest=window[0])


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/profiles", list_profiles, tag="models", roles=EVERYONE),
    route("GET", "/v1/market/timings", list_timings, tag="market", roles=EVERYONE),
)
