"""Where the objects lie is held against residency: a batch that may not lie there is refused before anything is spent."""

from __future__ import annotations

from typing import Any

import pytest

from broker.market_settings import LocalMarketSettings
from broker.settings import ObjectSettings, Settings
from broker.store_residency import store_facts, store_refusals
from solver.residency import INTERNAL, Policy, PolicyRule, compile_countries, with_confidentiality

NOW_US = 1_000_000


def settings(tmp_path: Any, *, local: str | None = None, **objects: Any) -> Settings:
    return Settings(data=tmp_path, local=LocalMarketSettings(country=local), objects=ObjectSettings(**objects))


S3 = {"kind": "s3", "bucket": "acme"}


@pytest.mark.parametrize(
    ("objects", "local", "policy", "is_refused"),
    [
        ({**S3, "country": "DE"}, None, compile_countries(["eu"]), False),
        ({**S3, "country": "US"}, None, compile_countries(["eu"]), True),
        (S3, None, compile_countries(["eu"]), True),  # unknown never satisfies an allow
        (S3, None, INTERNAL, False),  # which names no places
        (
            {**S3, "country": "DE"},
            None,
            with_confidentiality(compile_countries(["DE"]), "gpu_tee"),
            False,
        ),  # of machines
        ({}, "DE", compile_countries(["DE"]), False),  # a folder of this machine, which stands there
        ({}, "DE", compile_countries(["FR"]), True),
        ({}, None, compile_countries(["FR"]), False),  # nothing was stated
        ({"country": "US"}, "DE", compile_countries(["DE"]), True),  # a folder that is mounted from elsewhere
    ],
)
def test_a_policy_that_names_places_is_held_against_the_store(
    tmp_path: Any, objects: dict[str, Any], local: str | None, policy: Policy, is_refused: bool
) -> None:
    facts = store_facts(settings(tmp_path, local=local, **objects), NOW_US)
    assert bool(store_refusals(policy, facts, NOW_US)) == is_refused


@pytest.mark.parametrize(("jurisdictions", "is_refused"), [(("DE",), False), (("DE", "US"), True), (None, False)])
def test_a_denied_jurisdiction_is_denied_to_the_store(
    tmp_path: Any, jurisdictions: tuple[str, ...] | None, is_refused: bool
) -> None:
    """An operator under foreign law holds the data wherever the building stands."""
    rule = PolicyRule(id="no_us_law", effect="deny", field="jurisdictions", values=("US",))
    facts = store_facts(settings(tmp_path, **S3, country="DE", jurisdictions=jurisdictions), NOW_US)
    assert bool(store_refusals(Policy(name="p", rules=(rule,)), facts, NOW_US)) == is_refused
