"""The price list: what may be chosen first, tokens compared with hours, and prices elsewhere that nobody is placed on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from broker.price_list import Outputs, compared, order, usd_per_million, usd_price
from markets.offer import Accelerator, Offer, OfferKey, TokenPrice
from markets.price_book import Listed
from workers.profile import ModelProfile

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def offer(sku: str, price: str | None, name: str = "l4") -> Offer:
    return Offer(
        key=OfferKey("m", None, None, sku, name, 1, "on_demand"),
        launch="vm",
        accelerator=Accelerator("nvidia", name, "pcie", 24_576, 1),
        currency="USD",
        price=None if price is None else Decimal(price),
        observed_at=NOW,
        source="test",
        raw_sha256="00",
    )


def listed(of: Offer, excluded: str | None = None) -> Listed:
    return Listed(of, NOW, excluded, None)


def profile(**speeds: tuple[float, float]) -> ModelProfile:
    return ModelProfile(
        id="m", engine="vllm", precision="auto", context=4096, launches=("container", "vm"), tokens_per_s=speeds
    )


def test_a_million_tokens_cost_an_hours_price_by_what_an_hour_yields() -> None:
    model = profile(l4=(4000.0, 1000.0))  # 3.6 million tokens an hour
    outputs = Outputs([model], [offer("a", "0.72").accelerator, offer("a", "0.72", "t4").accelerator])
    assert usd_per_million(offer("a", "0.72"), outputs) == Decimal("0.2")
    assert usd_per_million(offer("a", "0.72", "t4"), outputs) is None, (
        "no speed is known: no price per token is made up"
    )
    tokens = replace(offer("t", None), per_million=TokenPrice(Decimal("0.1"), Decimal("0.32")))
    assert usd_per_million(tokens, outputs) == Decimal("0.32")


def test_a_known_model_has_a_price_per_token_where_nobody_gave_it_a_speed() -> None:
    """What the plan could place by an estimate was listed without a price, last, and no quote compared with it."""
    known = replace(profile(), weights="meta-llama/Llama-3.1-8B-Instruct")
    h100 = offer("h100", "2.50", "h100-sxm")
    h100 = replace(h100, accelerator=Accelerator("nvidia", "h100-sxm", "sxm", 81_920, 1))
    outputs = Outputs([known], [h100.accelerator])
    price = usd_per_million(h100, outputs)
    assert price is not None and Decimal("0.02") < price < Decimal(2), "MLPerf: 5,777 tokens/s, 0.12 at this price"
    (told,) = compared([listed(h100, "snapshot")], [known], input_tokens=1_000, output_tokens=1_000_000)
    assert told.usd_per_million == price
    given = replace(known, tokens_per_s={"h100-sxm": (1.0, 1.0)})
    assert Outputs([given], [h100.accelerator]).on(h100) == 1, "what the operator says goes before an estimate"


def test_a_faster_profile_sets_no_price_where_it_does_not_fit() -> None:
    """A price per token by the speed on two devices stood beside machines that have one."""
    slow = profile(l4=(4000.0, 1000.0))
    fast = replace(
        slow, id="m-2", options=replace(slow.options, tensor_parallel=2), tokens_per_s={"l4": (8000.0, 2000.0)}
    )
    one = offer("one", "0.72")
    two = replace(offer("two", "0.72"), accelerator=replace(one.accelerator, count=2))
    outputs = Outputs([slow, fast], [one.accelerator, two.accelerator])
    assert [usd_per_million(each, outputs) for each in (one, two)] == [Decimal("0.2"), Decimal("0.1")]


def test_for_a_model_the_dearer_hour_can_be_the_cheaper_token() -> None:
    cheap, fast = offer("cheap", "0.72"), offer("fast", "1.80", "h100-sxm")
    per_million = {str(o.key): Decimal(n) for o, n in ((cheap, "0.2"), (fast, "0.1"))}
    assert [each.offer.key.sku for each in order([listed(cheap), listed(fast)], per_million)] == ["fast", "cheap"]
    assert [each.offer.key.sku for each in order([listed(cheap), listed(fast)])] == ["cheap", "fast"]


def test_what_cannot_be_chosen_comes_after_what_can_and_an_unknown_price_is_not_low() -> None:
    found = order(
        [listed(offer("stale", "0.1"), "stale"), listed(offer("none", None), "unknown"), listed(offer("dear", "9"))]
    )
    assert [each.offer.key.sku for each in found] == ["dear", "stale", "none"]


def test_only_capacity_that_is_paid_for_anyway_costs_nothing_more() -> None:
    reserved = replace(offer("r", "0"), key=replace(offer("r", "0").key, pricing="reserved"))
    assert usd_price(offer("free", "0")) is None
    assert usd_price(reserved) is None
    assert usd_price(replace(reserved, sunk_per_hour=Decimal(18))) == 0


def test_prices_elsewhere_are_those_that_nobody_is_placed_on_cheapest_first() -> None:
    model = profile(**{"l4": (1000.0, 1000.0), "h100-sxm": (10_000.0, 10_000.0)})
    shown = [
        listed(offer("usable", "0.01")),
        listed(offer("l4", "0.36"), "snapshot"),
        listed(offer("l4-dear", "0.40"), "snapshot"),
        listed(offer("h100", "1.80", "h100-sxm"), "snapshot"),
        listed(replace(offer("doubted", "0.001"), quarantined="implausible"), "implausible"),
        listed(offer("nobody-knows", "0.001", "t4"), "snapshot"),
    ]
    found = compared(shown, [model], input_tokens=9_000_000, output_tokens=1_000_000)
    assert [(each.offer.key.sku, each.usd) for each in found] == [("h100", Decimal("0.5")), ("l4", Decimal("1"))]
