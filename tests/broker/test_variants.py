"""Which profiles may serve: names, then filters, each of which says what it removed."""

from __future__ import annotations

from typing import Any

import pytest

from broker.api import quote_shapes
from broker.control.variant_quotes import Quoted, cheapest
from broker.variants import ModelWishes, variants
from workers.profile import ModelProfile

CHAT = "/v1/chat/completions"


def profile(name: str, serves: str | None = None, precision: str = "bf16", *endpoints: str) -> ModelProfile:
    return ModelProfile(id=name, engine="vllm", serves=serves, precision=precision, endpoints=endpoints or (CHAT,))


PROFILES = {
    each.id: each
    for each in (
        profile("llama@fp8", "llama", "fp8"),
        profile("llama"),
        profile("mistral"),
        profile("embedder", None, "bf16", "/v1/embeddings"),
    )
}


def ids(**wishes: Any) -> list[str]:
    found = variants(PROFILES, model="llama", endpoint=CHAT, wishes=ModelWishes(**wishes))
    assert not found.findings
    return [each.id for each in found.profiles]


@pytest.mark.parametrize(
    ("wishes", "left"),
    [
        ({}, ["llama", "llama@fp8"]),  # the profile of just that name is preferred
        ({"models": ["mistral"]}, ["llama", "llama@fp8", "mistral"]),
        ({"models": ["mistral", "embedder"]}, ["llama", "llama@fp8", "mistral"]),  # it has no chat
        ({"precision": ["fp8"]}, ["llama@fp8"]),
        ({"precision": ["fp8", "bf16"]}, ["llama", "llama@fp8"]),
        ({"models": ["mistral"], "engine_profile": "mistral"}, ["mistral"]),
        ({"models": ["llama@fp8"]}, ["llama", "llama@fp8"]),  # named twice is there once
    ],
)
def test_wishes_leave_the_profiles_that_they_name(wishes: dict[str, Any], left: list[str]) -> None:
    assert ids(**wishes) == left


@pytest.mark.parametrize(
    ("model", "wishes", "code", "param", "says"),
    [
        ("nobody", {}, "model_not_found", "model", "known models: embedder, llama, llama@fp8, mistral"),
        ("llama", {"models": ["mistrel"]}, "model_not_found", "x_broker.models", "'mistrel'"),
        ("embedder", {}, "invalid_url", "url", "removed embedder (it serves /v1/embeddings)"),
        ("llama", {"precision": ["int4"]}, "no_variant", "x_broker.precision", "llama@fp8 (its precision is fp8)"),
        ("llama", {"engine_profile": "x"}, "no_variant", "x_broker.engine_profile", "removed llama (engine vllm)"),
        (
            "llama",
            {"engine_profile": "llama", "precision": ["fp8"]},
            "no_variant",
            "x_broker.precision",
            "engine_profile llama removed llama@fp8 (engine vllm); precision fp8 removed llama (its precision is bf16)",
        ),
    ],
)
def test_when_nothing_is_left_it_says_which_wish_removed_which_profile(
    model: str, wishes: dict[str, Any], code: str, param: str, says: str
) -> None:
    found = variants(PROFILES, model=model, endpoint=CHAT, wishes=ModelWishes(**wishes))
    (finding,) = found.findings
    assert (found.profiles, finding.code, finding.param) == ((), code, param)
    assert says in finding.message


def quoted(name: str, usd: str | None, waiting_on: str | None = None) -> Quoted:
    explanation = quote_shapes.Explanation(
        feasible=usd is not None,
        plan=None,
        planned_at=None,
        lines=1,
        input_tokens=1,
        output_tokens=1,
        offers=1,
        funnel=[],
        chosen=[],
        usd=usd,
        end=None,
        waiting_on=waiting_on,
        reasons=[],
        relaxations=[],
    )
    return Quoted(PROFILES[name], explanation)


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ([quoted("llama", "0.10"), quoted("llama@fp8", "0.09")], "llama@fp8"),  # numbers, not text
        ([quoted("llama", "10"), quoted("llama@fp8", "9")], "llama@fp8"),
        ([quoted("llama", "1"), quoted("llama@fp8", "1.0")], "llama"),  # equal: the preferred one
        ([quoted("llama", None, "capacity"), quoted("llama@fp8", "99")], "llama@fp8"),  # what runs beats what waits
        ([quoted("llama", None, "residency"), quoted("llama@fp8", None, "capacity")], "llama@fp8"),  # passes by itself
        ([quoted("llama", None, "model"), quoted("llama@fp8", None, "residency")], "llama"),
    ],
)
def test_the_cheapest_feasible_profile_is_taken(offered: list[Quoted], taken: str) -> None:
    assert cheapest(offered).profile.id == taken
