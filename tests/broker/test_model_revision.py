"""When two answers are of the same model: only when everything that can change them is the same, and pinned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.model_revision import revision_of
from workers.profile import ModelProfile

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = ModelProfile(id="m", engine="vllm", weights="org/m", revision=COMMIT)


@pytest.mark.parametrize(
    ("profile", "is_pinned"),
    [
        (HUB, True),
        (replace(HUB, revision="main"), False),  # a branch moves
        (replace(HUB, revision=None), False),
        (ModelProfile(id="m", engine="llamacpp", weights="/m.gguf"), False),  # a file can be replaced
        (ModelProfile(id="m", engine="llamacpp", weights="/m.gguf", weights_sha256="ab"), True),
        (ModelProfile(id="m", engine="url", base_url="http://there"), False),  # whatever stands behind it
        (ModelProfile(id="m", engine="url", base_url="http://there", revision="2026-11"), True),  # the operator's word
    ],
)
def test_a_revision_is_known_only_of_weights_that_cannot_change(profile: ModelProfile, is_pinned: bool) -> None:
    assert (revision_of(profile) is not None) == is_pinned


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"precision": "fp8"}, False),
        ({"context": 4096}, False),  # longer prompts are cut elsewhere
        ({"args": ("--seed", "1")}, False),
        ({"image": "vllm@sha256:1"}, False),  # another engine
        ({"env": {"A": "1"}}, False),
        ({"api_key": "k"}, True),
        ({"parallel": 99}, True),
        ({"tokens_per_s": {"H100": (1.0, 1.0)}}, True),
    ],
)
def test_what_can_change_an_answer_changes_the_revision(change: dict[str, Any], is_same: bool) -> None:
    assert (revision_of(replace(HUB, **change)) == revision_of(HUB)) == is_same
