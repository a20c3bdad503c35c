"""Profiles as an operator writes them down."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from broker.model_set import model_profiles
from broker.settings import load
from broker.variants import ModelWishes, variants
from workers.engine_profile import EngineProfile, Speculation
from workers.errors import BadProfile

DIGEST = "vllm/vllm-openai@sha256:" + "0" * 64
TOML = f"""
[models."llama-8b"]
engine = "vllm"
weights = "org/llama-8b"
image = "{DIGEST}"
launches = ["container"]
tokens_per_s = {{ h100 = [40000.0, 5000.0] }}

[models."llama-8b".profiles.bf16]
dtype = "bfloat16"
speculation = {{ method = "ngram", tokens = 4, lookup = 4 }}

[models."llama-8b".profiles.awq]
quantization = "awq"
weights = "org/llama-8b-awq"
tokens_per_s = {{ a10g = [9000.0, 1500.0] }}
args = ["--seed", "7"]
"""


def profiles(folder: Path, text: str):  # type: ignore[no-untyped-def]
    (folder / "broker.toml").write_text(text)
    return model_profiles(load(data=folder))


def test_named_profiles_are_variants_of_their_model(tmp_path: Path) -> None:
    found = profiles(tmp_path, TOML)
    bf16, awq = found["llama-8b@bf16"], found["llama-8b@awq"]
    assert bf16.options == EngineProfile(dtype="bfloat16", speculation=Speculation(method="ngram", tokens=4, lookup=4))
    assert (bf16.serves, bf16.precision, bf16.weights, bf16.image) == ("llama-8b", "bf16", "org/llama-8b", DIGEST)
    assert (awq.precision, awq.weights, awq.tokens_per_s) == ("awq", "org/llama-8b-awq", {"a10g": (9000.0, 1500.0)})
    assert awq.args == ("--seed", "7")
    assert "llama-8b" not in found, "the section itself is no profile when it names some"


@pytest.mark.parametrize(
    ("wishes", "left"),
    [
        (ModelWishes(), ["llama-8b@awq", "llama-8b@bf16"]),
        (ModelWishes(precision=("awq",)), ["llama-8b@awq"]),
        (ModelWishes(engine_profile="llama-8b@bf16"), ["llama-8b@bf16"]),
        (ModelWishes(engine_profile="bf16"), ["llama-8b@bf16"]),  # as the settings name it
    ],
)
def test_a_batch_picks_among_them(tmp_path: Path, wishes: ModelWishes, left: list[str]) -> None:
    found = variants(profiles(tmp_path, TOML), model="llama-8b", endpoint="/v1/chat/completions", wishes=wishes)
    assert [each.id for each in found.profiles] == left


def test_what_cannot_be_served_is_refused_when_the_settings_are_read(tmp_path: Path) -> None:
    wrong = TOML.replace('dtype = "bfloat16"', 'dtype = "float32"\nquantization = "gptq"').replace(DIGEST, "vllm:v1")
    with pytest.raises(BadProfile) as refused:
        profiles(tmp_path, wrong)
    assert "model 'llama-8b@bf16': quantization 'gptq'" in str(refused.value)
    assert "model 'llama-8b@awq': image 'vllm:v1' is a tag" in str(refused.value)


@pytest.mark.parametrize(
    "line", ["tensor_paralel = 2", "dtype = 'bf17'", "speculation = { method = 'ngram', token = 1 }"]
)
def test_a_word_that_is_no_option_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValidationError, match=r"models\.llama-8b\.profiles\.awq"):
        profiles(tmp_path, TOML + line)
