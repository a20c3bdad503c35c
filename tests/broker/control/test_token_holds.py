"""Token endpoints in the plan, and the money that is set aside before anything is bought there."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from broker.control.token_offers import bought, servable
from broker.market_settings import TokenBuying
from broker.token_costs import most_input, most_of_work
from ledger.money import cost_of_seconds, to_nano
from markets.offer import Accelerator, Evidence, Offer, OfferKey, TokenEndpoint, TokenPrice
from markets.price_book import Listed
from solver.types import Variant, Work
from workers.profile import ModelProfile

NOW = datetime(2026, 11, 28, tzinfo=UTC)
PROFILE = ModelProfile(id="m", engine="url", base_url="http://127.0.0.1:9", context=4096)


def endpoint(**fields: Any) -> Listed:
    offer = Offer(
        key=OfferKey("near", None, None, "large", "tokens", 0, "token"),
        launch="token_api", accelerator=Accelerator(kind="none", name="tokens"), currency="USD", price=None, observed_at=NOW,
        source="card", raw_sha256="0" * 64, per_million=TokenPrice(Decimal("0.15"), Decimal("0.60"), Decimal("0.07")),
        country="FR", evidence=(Evidence("operator_statement", "card", NOW, timedelta(days=1)),),
        endpoint=TokenEndpoint("large", "https://near.example/v1", "m", context_tokens=8192),
    )  # fmt: skip
    return Listed(replace(offer, **fields), NOW, None, None)


def work(input_tokens: int = 1_000_000, output: int = 500_000, longest: int = 900_000, **fields: Any) -> Work:
    return Work(
        id="w", project="p", model="m", precision="auto", endpoint="/v1/chat/completions", lines=1_000,
        input_tokens=input_tokens, output_tokens_p50=output, output_tokens_p90=longest, deadline_us=1, max_nano=None,
        priority=0, policy_hash="", **fields,
    )  # fmt: skip


def terms(**fields: Any) -> dict[str, TokenBuying]:
    return {"near": TokenBuying(**{"models": {"m": "large"}, "tokens_per_minute": 1_000_000, **fields})}


@given(st.integers(1, 10**9), st.integers(0, 10**9), st.integers(1, 10**9), st.integers(0, 10**9))
@settings(deadline=None)
def test_time_at_the_endpoints_price_is_tokens_at_theirs(into: int, out: int, other_in: int, other_out: int) -> None:
    """Whatever the mix of input and output, also one that the rates were not made for."""
    found = bought([endpoint()], terms(), {"m": PROFILE}, [work(into, out)], {})
    [made] = found.values()
    [speed] = made.throughput
    hour = to_nano(made.listed.offer.price or Decimal(0))
    seconds = other_in / speed.input_per_s + other_out / speed.output_per_s
    exact = Decimal(other_in) * Decimal("0.15") / 10**6 + Decimal(other_out) * Decimal("0.60") / 10**6
    assert abs(cost_of_seconds(hour, 1) * seconds - float(exact) * 10**9) <= seconds + 1e-6 * float(exact) * 10**9
    busy = into / speed.input_per_s + out / speed.output_per_s
    assert (into + out) / busy <= 1_000_000 / 60 * (1 + 1e-9), "faster than the endpoint lets us"


def test_a_limit_of_requests_and_a_measured_speed_are_believed_where_they_are_less() -> None:
    plain, by_requests = ({"m": PROFILE}, [work()], {}), terms(requests_per_minute=100)
    speed = lambda found: next(iter(found.values())).throughput[0]  # noqa: E731
    free = speed(bought([endpoint()], terms(), *plain))
    assert speed(bought([endpoint()], by_requests, *plain)).input_per_s == pytest.approx(
        0.15 * free.input_per_s, rel=1e-6
    )
    seen = {("m", "auto", "near:-:large/token_api"): (600_000, 400_000, 120.0)}  # half of the limit
    measured = speed(bought([endpoint()], terms(), {"m": PROFILE}, [work()], seen))
    assert (measured.source, measured.cautious) == ("measured", 1.0)
    assert measured.input_per_s == pytest.approx(free.input_per_s / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("listed", "profile", "of_work", "why"),
    [
        (endpoint(), replace(PROFILE, context=100_000), {}, "its context is 8192 tokens"),
        (endpoint(), replace(PROFILE, endpoints=("/v1/embeddings",)), {"endpoint": "/v1/embeddings"}, "does not serve"),
    ],
)
def test_what_the_endpoint_cannot_serve_is_unfit(
    listed: Listed, profile: ModelProfile, of_work: dict[str, Any], why: str
) -> None:
    asked = [work()] if not of_work else [Work(**{**_fields(work()), **of_work})]
    [made] = bought([listed], terms(), {"m": profile}, asked, {}).values()
    assert why in made.unfit["m"]


def test_a_batch_that_may_use_a_profile_takes_no_endpoint_from_those_that_do() -> None:
    """Embeddings that a chat model might have made too kept all chats of it from the seller, who makes no embeddings."""
    other = Work(**{**_fields(work()), "id": "z", "model": "other", "endpoint": "/v1/embeddings"})
    other = structs.replace(other, alternatives=(Variant(model="m", precision="auto"),))
    found = bought([endpoint()], terms(), {"m": PROFILE}, [work(), other], {})
    assert [made.unfit for made in found.values()] == [{}]
    sold = servable([work(), other], found, {"near": terms()["near"]})
    assert [each.alternatives for each in sold] == [(), ()], "nor is it bought there itself"


@pytest.mark.parametrize(
    "listed",
    [
        endpoint(currency="EUR"),  # an amount of another currency is no price
        endpoint(per_million=TokenPrice(Decimal(0), Decimal("0.6"))),  # 0 is unknown, not free
        endpoint(endpoint=TokenEndpoint("other", "https://near.example/v1", "other")),  # not mapped
        endpoint(endpoint=TokenEndpoint("large", "https://near.example/v1", "m", mode="batch")),  # another API
    ],
)
def test_what_is_not_bought_has_no_price_of_an_hour(listed: Listed) -> None:
    assert bought([listed], terms(), {"m": PROFILE}, [work()], {}) == {}


def test_the_hold_is_of_answers_as_long_as_they_may_be() -> None:
    price = TokenPrice(Decimal("0.15"), Decimal("0.60"), Decimal("0.07"))
    # nothing of it cached, and a quarter more of input than was estimated: 1.25 x 0.15 + 0.9 x 0.60 USD
    assert most_of_work(price, work(), Decimal("1.25")) == to_nano(Decimal("0.7275"))


def test_the_hold_is_of_prompts_in_any_language_and_with_tools() -> None:
    """Four characters a token are English prose: Chinese has a token a character, and tools were not counted at all."""
    price = TokenPrice(Decimal("0.15"), Decimal("0.60"), None)
    most = work(input_tokens=100, input_tokens_most=most_input(6_000_000))
    assert most_of_work(price, most, Decimal("1.25")) == to_nano(Decimal("0.15") * 2 + Decimal("0.9") * Decimal("0.6"))


def test_an_hour_at_the_limits_costs_at_most_what_it_does_in_the_dearest_class() -> None:
    """What waits now may be cheap to read, and the next batch all output."""
    for inputs, outputs in ((1_000_000, 1), (1, 1_000_000)):
        [made] = bought([endpoint()], terms(executors=4), {"m": PROFILE}, [work(inputs, outputs)], {}).values()
        assert made.most_nano_hour == to_nano(Decimal("0.6") * 15)  # 250,000 tokens a minute
        assert (made.listed.offer.price or 0) <= Decimal(9)


def _fields(of: Work) -> dict[str, Any]:
    return {name: getattr(of, name) for name in of.__struct_fields__}
