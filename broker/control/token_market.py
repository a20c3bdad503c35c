"""A batch's price where tokens are sold by the million, beside what renting would come to. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from broker.api import quote_shapes
from broker.control.convert import facts_of, usd
from ledger.money import to_nano
from markets.offer import Offer
from markets.price_book import Listed
from solver.residency import PathFacts, Policy, evaluate
from solver.types import Work

# The cheapest so many are shown: the rest is in `broker offers`.
SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Priced:
    """What the work costs at one endpoint: expected, at most, and why it may not be bought there."""

    offer: Offer
    nano: int
    most_nano: int
    refused: str | None


def beside(
    listed: Iterable[Listed],
    names: Collection[str],
    work: Work,
    policy: Policy,
    now_us: int,
    paths: Sequence[PathFacts] = (),
) -> list[quote_shapes.TokenMarketQuote]:
    """The cheapest token offers of the model, allowed ones first. `names` is what the model is called here and at its
    makers', `paths` are the broker's other data paths."""
    wanted = {plain(name) for name in names}
    found = [
        _price(each, work, policy, now_us, paths)
        for each in listed
        if each.offer.per_million is not None
        and each.offer.endpoint is not None
        and wanted & {plain(each.offer.endpoint.serves), plain(each.offer.endpoint.model)}
    ]
    found.sort(key=lambda each: (each.refused is not None, each.nano, str(each.offer.key)))
    tokens = max(1, work.input_tokens + work.output_tokens_p50)
    return [
        quote_shapes.TokenMarketQuote(
            offer_key=str(each.offer.key),
            usd=usd(each.nano),
            usd_p90=usd(each.most_nano),
            usd_per_million_tokens=usd(each.nano * 1_000_000 // tokens),
            allowed=each.refused is None,
            reason=each.refused,
        )
        for each in found[:SHOWN]
    ]


def advise(rented_usd: str | None, bought: Iterable[quote_shapes.TokenMarketQuote]) -> tuple[str, str]:
    """(rent | buy_tokens | none, a sentence why). Bought where that is allowed and costs less, or where nothing can be rented."""
    best = next((each for each in bought if each.allowed), None)
    if best is None:
        word = "none" if rented_usd is None else "rent"
        return word, "no token endpoint that sells this model and is allowed is in the price book"
    if rented_usd is None:
        return "buy_tokens", f"nothing can be rented in time; {best.offer_key} sells the tokens for {best.usd} USD"
    if Decimal(best.usd) < Decimal(rented_usd):
        return (
            "buy_tokens",
            f"buy the API: {best.offer_key} sells the tokens for {best.usd} USD, renting costs {rented_usd} USD",
        )
    return "rent", f"renting costs {rented_usd} USD, the cheapest token endpoint {best.usd} USD ({best.offer_key})"


def plain(name: str) -> str:
    """A model's name without its maker and without the words that markets add or leave out.

    >>> plain("meta-llama/Llama-3.1-8B-Instruct"), plain("llama-3.1-8b-instruct:batch")
    ('llama-3.1-8b-instruct', 'llama-3.1-8b-instruct')
    """
    return name.lower().rpartition("/")[2].partition(":")[0].replace("meta-llama-", "llama-").replace("_", "-")


def _price(listed: Listed, work: Work, policy: Policy, now_us: int, paths: Sequence[PathFacts]) -> _Priced:
    offer = listed.offer
    price = offer.per_million
    if price is None:
        raise ValueError(f"offer {offer.key} sells no tokens")
    per_input, per_output = to_nano(price.input), to_nano(price.output)
    costs = [
        (work.input_tokens * per_input + output * per_output + 999_999) // 1_000_000
        for output in (work.output_tokens_p50, max(work.output_tokens_p50, work.output_tokens_p90))
    ]
    return _Priced(offer, costs[0], costs[1], _refusal(listed, policy, now_us, paths))


def _refusal(listed: Listed, policy: Policy, now_us: int, paths: Sequence[PathFacts]) -> str | None:
    """Why the tokens may not be bought there: held back, in another currency, or not permitted by the policy."""
    if listed.excluded or listed.offer.quarantined:
        return listed.excluded or listed.offer.quarantined
    if listed.offer.currency != "USD":
        return f"its price is in {listed.offer.currency}"
    decision = evaluate(policy, facts_of(listed.offer, paths), now_us)
    if decision.outcome == "allow":
        return None
    first = decision.reasons[0]
    return f"residency: {first.code} ({first.field}: wanted {first.wanted}, found {first.found})"
