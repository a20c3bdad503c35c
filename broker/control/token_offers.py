"""Token endpoints among what is planned with: an hour of one at its limits, and how fast it is then. Pure.

The planner rents instances by the hour. An endpoint is one whose hour costs P, where input passes at P / (price of input) and
output at P / (price of output): a work's time there times P is its tokens times their prices, to the second, whatever its mix
of input and output. P is chosen so that the works that wait pass at the endpoint's limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from broker.control.convert import hardware
from broker.market_settings import TokenBuying
from broker.token_buying import covered, most_nano_hour
from ledger.money import from_nano, to_nano
from markets.offer import Offer, TokenPrice, price_problem
from markets.offer_record import offer_from_record
from markets.price_book import Listed
from markets.tables import RentalRow
from solver.types import Running, Throughput, Timings, Work
from solver.variants import faces
from workers.profile import ModelProfile

MILLION = 1_000_000
# A limit is no promise of speed: until it was measured, deadlines count on so much of it.
UNSEEN = 0.7
# An executor is a process of this machine: the plan need not wait for it, nor is it paid for.
AT_ONCE = Timings(boot_s=0, load_s=0)

Measured = Mapping[tuple[str, str, str], tuple[int, int, float]]


@dataclass(frozen=True, slots=True)
class Bought:
    """An endpoint's offer with the price of an hour, and the profiles that may be served there; `unfit` says of one why not.
    `most_nano_hour` is what an executor spends in an hour at most."""

    listed: Listed
    profiles: tuple[ModelProfile, ...]
    unfit: Mapping[str, str]
    throughput: tuple[Throughput, ...]
    most_nano_hour: int


def bought(
    listed: Iterable[Listed],
    buying: Mapping[str, TokenBuying],
    models: Mapping[str, ModelProfile],
    works: Sequence[Work],
    measured: Measured,
) -> dict[str, Bought]:
    """By offer key, of the offers whose tokens are bought; `buying` is by market. A profile is unfit where works that are its own
    ask what is not served there; what merely may be served by it asks nothing (`servable`)."""
    found, served = {}, faces(works)
    for each in listed:
        terms = buying.get(each.offer.market)
        if terms is None:
            continue
        profiles = served_there(each.offer, terms, models)
        if profiles and (made := _bought(each, terms, profiles, served, measured, own=works)) is not None:
            found[str(each.offer.key)] = made
    return found


def servable(works: Sequence[Work], found: Mapping[str, Bought], buying: Mapping[str, TokenBuying]) -> list[Work]:
    """The works without the alternatives that are sold where their endpoint is not served: what is unfit there is so for all
    works of a model."""
    lacks = {
        (profile.id, endpoint)
        for each in found.values()
        for endpoint in {work.endpoint for work in works} - set(buying[each.listed.offer.market].endpoints)
        for profile in each.profiles
        if profile.id not in each.unfit
    }
    return [
        msgspec.structs.replace(
            work, alternatives=tuple(each for each in work.alternatives if (each.model, work.endpoint) not in lacks)
        )
        for work in works
    ]


def served_there(offer: Offer, terms: TokenBuying, models: Mapping[str, ModelProfile]) -> tuple[ModelProfile, ...]:
    """Our profiles that the settings map to what this offer sells."""
    endpoint = offer.endpoint
    if endpoint is None or endpoint.mode != "sync":
        return ()
    names = sorted(name for name, theirs in terms.models.items() if theirs == endpoint.model)
    return tuple(models[name] for name in names if name in models)


def buys_at(row: RentalRow, endpoint: Bought | None) -> Running:
    """An executor is there at once, and an hour of it costs what an hour of the endpoint costs the works of now."""
    hour = endpoint.listed.offer.price if endpoint is not None else None
    return Running(
        rental_id=row.id,
        offer_key=row.offer_key,
        project=row.project,
        model=row.model,
        precision=row.precision,
        ready_in_s=0,
        price_nano_hour=row.price_nano_hour if hour is None else to_nano(hour),
        covered=tuple(sorted(covered(row))),
    )


def outdated(row: RentalRow, endpoint: Bought | None) -> str | None:
    """Why an executor may buy no more: it books by the price that it was placed with, and the endpoint asks another now."""
    then = offer_from_record(row.facts).per_million
    now = endpoint.listed.offer.per_million if endpoint is not None else None
    if now is None or now == then:
        return None
    return f"the endpoint's price is another one now: {_dollars(now)} instead of {_dollars(then)}"


def _dollars(price: TokenPrice | None) -> str:
    if price is None:
        return "none"
    cached = "" if price.cached is None else f", cached ${price.cached.normalize():f}"
    return f"${price.input.normalize():f} in{cached}, ${price.output.normalize():f} out a million"


def _bought(
    listed: Listed,
    terms: TokenBuying,
    profiles: tuple[ModelProfile, ...],
    works: Sequence[Work],
    measured: Measured,
    *,
    own: Sequence[Work],
) -> Bought | None:
    offer = listed.offer
    if offer.per_million is None or offer.currency != "USD" or price_problem(offer) is not None:
        return None
    prices = (to_nano(offer.per_million.input), to_nano(offer.per_million.output))
    names = {profile.id for profile in profiles}
    mine = [work for work in works if work.model in names]
    per_s, is_measured = _tokens_per_s(offer, terms, profiles, mine, measured)
    hour = int(per_s * 3600 * _nano_per_token(mine, prices))
    if hour <= 0:
        return None
    throughput = tuple(
        Throughput(
            model=profile.id,
            precision=profile.precision,
            accelerator=hardware(offer),
            input_per_s=hour * MILLION / (3600 * prices[0]),
            output_per_s=hour * MILLION / (3600 * prices[1]),
            source="measured" if is_measured else "limits",
            cautious=1.0 if is_measured else UNSEEN,
        )
        for profile in profiles
    )
    unfit = {profile.id: why for profile in profiles if (why := _misfit(offer, terms, profile, own))}
    priced = replace(listed, offer=replace(offer, price=from_nano(hour)))
    return Bought(priced, profiles, unfit, throughput, most_nano_hour(offer.per_million, terms))


def _tokens_per_s(
    offer: Offer, terms: TokenBuying, profiles: Sequence[ModelProfile], works: Sequence[Work], measured: Measured
) -> tuple[float, bool]:
    """One executor's part of the limits, or what was measured where that is less."""
    minute = float(terms.tokens_per_minute)
    lines = sum(work.lines for work in works)
    if terms.requests_per_minute is not None and lines:
        tokens = sum(work.input_tokens + work.output_tokens_p50 for work in works)
        minute = min(minute, terms.requests_per_minute * max(1.0, tokens / lines))
    limit = minute / 60 / terms.executors
    seen = [
        (done[0] + done[1]) / done[2]
        for profile in profiles
        if (done := measured.get((profile.id, profile.precision, hardware(offer)))) and done[2] > 0
    ]
    return min([limit, *seen]), bool(seen)


def _nano_per_token(works: Sequence[Work], prices: tuple[int, int]) -> float:
    """Of the works that wait; of none, as much output as input."""
    into = sum(work.input_tokens for work in works) or (0 if works else 1)
    out = sum(work.output_tokens_p50 for work in works) or (0 if works else 1)
    return (into * prices[0] + out * prices[1]) / max(1, into + out) / MILLION


def _misfit(offer: Offer, terms: TokenBuying, profile: ModelProfile, works: Sequence[Work]) -> str | None:
    endpoint = offer.endpoint
    if endpoint is None:
        return "it has no endpoint"
    if endpoint.context_tokens is not None and endpoint.context_tokens < profile.context:
        return f"its context is {endpoint.context_tokens} tokens, requests may have {profile.context}"
    if endpoint.precision is not None and profile.precision not in ("auto", endpoint.precision):
        return f"it serves {endpoint.precision}, asked is {profile.precision}"
    asked = sorted({work.endpoint for work in works if work.model == profile.id} - set(terms.endpoints))
    return f"it does not serve {', '.join(asked)}" if asked else None
