"""Price cards of token endpoints: what is wrong is told at once and with its place, and no price is ever made up."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.control.convert import facts_of
from markets.errors import BadCard, MarketsError, Unsupported
from markets.offer import Offer, OfferKey, price_problem
from markets.offer_record import offer_from_record, record_from_offer
from markets.tokens.card import card_offers, read_card
from markets.tokens.market import TokenMarket
from markets.tokens.source import CardSource, shipped_card, shipped_cards

CARD = """
format = 1
market = "example"
operator = "Example Inc."
base_url = "https://api.example.com/v1/"
currency = "USD"
source = "https://example.com/pricing"
observed_on = 2026-11-20

[data_policy]
retention_days = 0
training = false
source = "https://example.com/privacy"

[batch]
times = 0.5
window_h = 24
source = "https://example.com/batch"

[[models]]
id = "meta/llama-3.3-70b"
serves = "llama-3.3-70b"
input = 0.59
cached = 0.295
output = 0.79
context = 131072
max_output = 32768
precision = "fp8"

[[models]]
id = "small"
input = 1
output = 0.1
batch = false
"""


def offers(text: str = CARD) -> dict[str, Offer]:
    return {each.key.sku: each for each in card_offers(read_card(text, "example.toml"))}


def test_a_card_is_offers_with_exact_prices_and_the_day_they_were_read() -> None:
    large = offers()["meta/llama-3.3-70b"]
    assert large.per_million is not None and large.endpoint is not None
    assert (large.per_million.input, large.per_million.cached) == (Decimal("0.59"), Decimal("0.295"))
    assert large.observed_at == datetime(2026, 11, 20, tzinfo=UTC)
    assert (large.pricing, large.launch, large.price, large.quarantined) == ("token", "token_api", None, None)
    endpoint = large.endpoint
    assert (endpoint.base_url, endpoint.model, endpoint.serves) == (
        "https://api.example.com/v1",
        "meta/llama-3.3-70b",
        "llama-3.3-70b",
    )
    assert (endpoint.context_tokens, endpoint.max_output_tokens, endpoint.precision) == (131072, 32768, "fp8")
    assert large.data_policy == {"retention_days": 0, "training": False, "source": "https://example.com/privacy"}
    assert (large.country, large.evidence, large.jurisdictions) == (None, (), None)


def test_a_batch_is_another_offer_at_its_part_of_the_price_and_what_is_kept_of_it_is_unknown() -> None:
    found = offers()
    assert set(found) == {"meta/llama-3.3-70b", "meta/llama-3.3-70b:batch", "small"}
    batch = found["meta/llama-3.3-70b:batch"]
    assert batch.per_million is not None and batch.endpoint is not None
    assert (batch.per_million.input, batch.per_million.output) == (Decimal("0.295"), Decimal("0.395"))
    assert (batch.endpoint.mode, batch.endpoint.window_s, batch.per_million.cached) == ("batch", 86_400, None)
    assert batch.data_policy is None


def test_a_card_says_everything_that_is_wrong_with_it_and_where() -> None:
    wrong = CARD.replace("output = 0.79", "output = 0").replace('currency = "USD"', "").replace("0.295", "-1")
    wrong = wrong.replace("training = false", 'training = "no"').replace("times = 0.5", "times = 2")
    with pytest.raises(BadCard) as told:
        read_card(wrong, "example.toml")
    text = str(told.value)
    assert text.startswith("example.toml: ")
    for each in (
        "currency is None",
        "models[1] ('meta/llama-3.3-70b'): output is 0",
        "cached is -1",
        "training",
        "batch.times",
    ):
        assert each in text


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        ("format = 1", "format = 2", "format is 2"),
        ("observed_on = 2026-11-20", "", "observed_on is None"),
        ('observed_on = 2026-11-20', 'observed_on = "today"', "observed_on is 'today'"),
        ("input = 0.59", "input = nan", "input is"),
        ("input = 0.59", "input = inf", "input is"),
        ("input = 0.59", 'input = "0.59"', "input is 0.59"),
        ("input = 0.59", "", "input is None"),
        ("context = 131072", "context = true", "context is True"),
        ("context = 131072", "contxt = 131072", "'contxt'"),
        ('id = "small"', 'id = "meta/llama-3.3-70b"', "stands there twice"),
        ('source = "https://example.com/privacy"', "", "data_policy has no source"),
        ("window_h = 24", "window_h = 0", "batch.window_h"),
        ("[[models]]", "[[models]", "is not TOML"),
    ],
)  # fmt: skip
def test_a_card_with_a_mistake_gives_no_offer_at_all(was: str, becomes: str, told: str) -> None:
    assert was in CARD
    with pytest.raises(BadCard, match="example") as error:
        read_card(CARD.replace(was, becomes, 1), "example.toml")
    assert told in str(error.value)


async def test_a_file_of_ones_own_is_read_anew_at_each_poll(tmp_path: Path) -> None:
    file = tmp_path / "example.toml"
    file.write_text(CARD)
    source = CardSource("example", file)
    assert len(await source.offers()) == 3
    file.write_text(CARD.replace("0.59", "0.49"))
    cheaper = {each.key.sku: each for each in await source.offers()}["meta/llama-3.3-70b"]
    assert cheaper.per_million is not None and cheaper.per_million.input == Decimal("0.49")
    file.unlink()
    with pytest.raises(BadCard, match="cannot be read"):
        await source.offers()


async def test_a_card_of_another_market_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "example.toml"
    file.write_text(CARD)
    with pytest.raises(BadCard, match="it must be 'mine'"):
        await CardSource("mine", file).offers()


@pytest.mark.parametrize("market", shipped_cards())
async def test_every_shipped_card_has_prices_with_a_source_and_a_date_or_says_that_it_is_a_template(
    market: str,
) -> None:
    card = shipped_card(market)
    assert card.market == market and card.source
    try:
        found = await CardSource(market).offers()
    except Unsupported as template:
        assert not card.models and "[[models]]" in str(template)
        return
    assert len({str(each.key) for each in found}) == len(found) >= len(card.models)
    for each in found:
        assert price_problem(each) is None
        assert OfferKey.parse(str(each.key)) == each.key
        assert offer_from_record(record_from_offer(each)) == each
        assert (each.quarantined is None) == ("{" not in card.base_url)


NAMED = (
    "together", "groq", "cerebras", "sambanova", "deepseek", "fireworks", "akashml", "io-intelligence", "orcarouter",
    "litellm", "portkey", "cloudflare", "openai", "azure-openai", "bedrock",
)  # fmt: skip
# What a page promises of requests as they come: days that prompts are kept, and whether they are trained on.
PROMISED: dict[str, tuple[int | None, bool | None]] = {
    "openai": (30, False),
    "fireworks": (0, False),
    "cerebras": (0, None),  # its page says nothing of training
    "groq": (30, None),  # kept only where reliability or abuse is looked into, and then so long
    "together": (None, False),  # two pages contradict each other on what is kept
    "azure-openai": (None, False),
    "cloudflare": (None, False),
}


@pytest.mark.parametrize("market", NAMED)
def test_a_shipped_card_promises_what_a_page_promises_and_places_nobody(market: str) -> None:
    """Whatever nobody says is unknown, and a policy that asks for it denies: a card never guesses."""
    retention, training = PROMISED.get(market, (None, None))
    for each in card_offers(shipped_card(market)):
        facts = facts_of(each)
        of_batches = each.endpoint is not None and each.endpoint.mode == "batch"
        assert (facts.retention_days, facts.trains_on_data) == ((None, None) if of_batches else (retention, training))
        assert (facts.country, facts.jurisdictions, facts.evidence) == (None, None, ())
        assert each.data_policy is None or each.data_policy["source"].startswith("https://")
        assert each.endpoint is not None and each.endpoint.context_tokens != 0


def test_batches_of_openai_azure_and_aws_cost_half_where_they_are_sold() -> None:
    sold = {market: {each.key.sku for each in card_offers(shipped_card(market))} for market in NAMED}
    halved = {name for name, skus in sold.items() if any(sku.endswith(":batch") for sku in skus)}
    assert halved == {"openai", "azure-openai", "bedrock", "groq", "together"}
    assert {shipped_card(name).batch and shipped_card(name).batch.times for name in halved} == {Decimal("0.5")}
    # AWS sells some models in batches, and nobody is told that it sells them all
    assert {sku for sku in sold["bedrock"] if sku.endswith(":batch")} == {
        f"amazon.nova-{size}-v1:0:batch" for size in ("lite", "micro", "pro")
    }


async def test_an_endpoint_whose_address_is_each_customers_own_is_not_chosen_before_it_is_known() -> None:
    for each in await CardSource("cloudflare").offers():
        assert each.quarantined is not None and "providers.cloudflare.url" in each.quarantined
    for each in await CardSource("cloudflare", base_url="https://api.example.com/mine/v1").offers():
        assert each.quarantined is None
        assert each.endpoint is not None and each.endpoint.base_url == "https://api.example.com/mine/v1"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_card_makes_an_offer_at_a_price_that_is_none(data: st.DataObject) -> None:
    """Whatever number, text or nothing stands where a price should: a positive price, or no offer."""
    value = data.draw(
        st.one_of(
            st.sampled_from(
                ["0", "-0.1", "nan", "inf", "-inf", '"free"', "true", "[]", "{}", "1e-400", "1e400", "2026-11-20"]
            ),
            st.decimals(allow_nan=False, allow_infinity=False, places=6).map(str),
        )
    )
    name = data.draw(st.sampled_from(["input = 0.59", "cached = 0.295", "output = 0.79", "times = 0.5"]))
    text = CARD.replace(name, f"{name.split(' ')[0]} = {value}")
    try:
        found = card_offers(read_card(text, "example.toml"))
    except MarketsError:
        return
    for each in found:
        price = each.per_million
        assert each.quarantined or (price is not None and min(price.input, price.output) > 0 and each.currency == "USD")


@pytest.mark.parametrize(
    ("url", "is_refused"),
    [
        ("http://api.example.com/v1", True),
        ("http://127.0.0.1.example.com/v1", True),  # a name that only begins like this machine
        ("https://api.example.com/v1", False),
        ("http://127.0.0.1:8000/v1", False),
        ("http://[::1]:8000/v1", False),
    ],
)
async def test_prompts_and_the_key_are_never_sent_in_clear_text_to_another_machine(
    url: str, is_refused: bool, tmp_path: Path
) -> None:
    card = tmp_path / "example.toml"
    card.write_text(CARD)
    prices = CardSource("example", card, base_url=url)
    market = TokenMarket(prices, tmp_path / "tokens", owner="o", models={"small"})
    [found] = [offer for offer in await market.offers() if offer.key.sku == "small"]
    assert ("clear text" in (found.quarantined or "")) == is_refused
