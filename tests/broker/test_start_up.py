"""What observed starts say of the next one."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.start_up import ENOUGH, WINDOW, Observed, StartUps, cautious, grouped
from markets.offer import Accelerator, Offer, OfferKey
from solver.types import Timings
from workers.profile import ModelProfile

SECONDS = st.integers(0, 86_400)
PROFILE = ModelProfile(id="m", engine="vllm", weights="/m", image="i@sha256:1", load_s=40, launches=("container",))


def offer(region: str | None = "eu", market: str = "town", sku: str = "s", boot_s: int | None = None) -> Offer:
    return Offer(
        key=OfferKey(market, region, None, sku, "h100", 1, "spot"),
        launch="container",
        accelerator=Accelerator("nvidia", "h100", count=1),
        currency="USD",
        price=Decimal(1),
        observed_at=datetime.now(UTC),
        source="test",
        raw_sha256="0" * 64,
        country="DE",
        boot_s=boot_s,
    )


def seen(boot_s: int, ready_s: int, place: str = "eu", image: str = "i@sha256:1", market: str = "town") -> Observed:
    return Observed(market, place, image, "m", "h100/container", boot_s * 1000, ready_s * 1000)


@given(st.lists(SECONDS, max_size=3 * WINDOW), SECONDS)
def test_the_estimate_is_something_that_was_seen_or_the_prior_and_never_below_the_median(
    newest: list[int], prior: int
) -> None:
    found = cautious(newest, prior)
    window = newest[:WINDOW]
    assert found in [*window, prior]
    if len(window) >= ENOUGH:
        assert found >= sorted(window)[(len(window) - 1) // 2]


@given(st.lists(SECONDS, min_size=WINDOW, max_size=WINDOW), st.lists(SECONDS, max_size=50), SECONDS)
def test_what_lies_beyond_the_window_changes_nothing(newest: list[int], old: list[int], prior: int) -> None:
    assert cautious([*newest, *old], prior) == cautious(newest, prior)


@given(st.lists(st.integers(10, 20), min_size=ENOUGH, max_size=WINDOW))
def test_one_machine_that_hung_does_not_price_a_region_out(newest: list[int]) -> None:
    assert cautious([86_400, *newest], 1) <= 20


def test_without_observations_the_market_and_the_settings_are_believed() -> None:
    nothing = StartUps()
    assert nothing.timings(offer(boot_s=90), PROFILE).boot_s == 90
    assert nothing.timings(offer(), PROFILE).boot_s == 5, "what a container takes where its market does not say"
    assert nothing.ready(offer(), PROFILE).seconds == 40


@pytest.mark.parametrize(
    ("of", "boot_s", "ready_s", "by"),
    [
        (offer("eu"), 300, 200, "market, region and image"),
        # the image is as far from there as from elsewhere in this market: better than a constant
        (offer("asia"), 400, 200, "market and image"),
        # how long a model loads does not depend on who rents the machine out; how long that takes does
        (offer("eu", market="city"), 5, 200, "prior"),
    ],
)
def test_the_narrowest_group_that_was_seen_counts(of: Offer, boot_s: int, ready_s: int, by: str) -> None:
    known = grouped([*[seen(400, 200, place="us")] * ENOUGH, *[seen(300, 200)] * ENOUGH])
    assert (known.boot(of, PROFILE).of, known.timings(of, PROFILE).boot_s) == (by, boot_s)
    assert known.ready(of, PROFILE).seconds == ready_s


def test_one_slow_region_does_not_make_those_slow_that_nobody_has_tried() -> None:
    known = grouped([seen(900, 900, place="slow")] * WINDOW)
    assert known.timings(offer("slow"), PROFILE) == Timings(boot_s=900, load_s=900)
    assert known.timings(offer("untried"), PROFILE) == Timings(boot_s=5, load_s=40)


def test_own_hosts_are_told_apart_though_they_have_no_region() -> None:
    known = grouped([seen(600, 30, place="slow-host")] * ENOUGH + [seen(3, 30, place="fast-host")] * ENOUGH)
    assert known.boot(offer(None, sku="slow-host"), PROFILE).seconds == 600
    assert known.boot(offer(None, sku="fast-host"), PROFILE).seconds == 3
