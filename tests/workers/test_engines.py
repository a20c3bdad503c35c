"""From a model's profile to what the agent is told of its engine."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_broker import schema_errors
from workers.catalogue import built_in_models
from workers.engines import engine_spec
from workers.errors import BadProfile
from workers.profile import ModelProfile

VALID = [
    ModelProfile(id="a", engine="llamacpp", weights="/models/a.gguf", args=("--threads", "2")),
    ModelProfile(
        id="b", engine="vllm", weights="org/model", revision="abc", precision="bf16", args=("--enforce-eager",)
    ),
    ModelProfile(id="c", engine="url", base_url="http://127.0.0.1:8000/v1/", api_key="secret", weights="remote-name"),
    ModelProfile(id="d", engine="command", argv=("serve", "--port", "{port}")),
    *built_in_models().values(),
]


@pytest.mark.parametrize("profile", VALID, ids=lambda profile: profile.id)
def test_every_engine_keeps_the_wire_contract(profile: ModelProfile) -> None:
    welcome = {
        "worker_id": "w",
        "token": "t",
        "token_ttl_s": 1,
        "heartbeat_s": 1,
        "engine": engine_spec(profile),
        "part": {"lines": 1, "seconds": 1, "bytes": 1},
        "max_attempts": 3,
    }
    assert schema_errors("hello.response", welcome) == []


def test_vllm_is_bound_to_loopback_and_takes_the_profiles_flags() -> None:
    spec = engine_spec(VALID[1])
    assert spec["argv"] == [
        *("vllm", "serve", "org/model", "--served-model-name", "b", "--host", "{host}", "--port", "{port}"),
        *("--max-model-len", "2048", "--uvicorn-log-level", "warning", "--revision", "abc"),
        *("--dtype", "bfloat16", "--enforce-eager"),
    ]
    assert "HF_HUB_OFFLINE" not in spec["env"]
    assert spec["env"]["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0", "an allowed media host must not send it elsewhere"
    local = engine_spec(ModelProfile(id="b", engine="vllm", weights="/models/b", precision="fp8"))
    assert local["env"]["HF_HUB_OFFLINE"] == "1"
    assert local["argv"][-2:] == ["--quantization", "fp8"]


def test_vllm_fetches_media_from_the_hosts_that_lines_may_name_and_no_profile_says_otherwise() -> None:
    hosts = ("media.example.org", "img.example.net")
    argv = engine_spec(VALID[1], hosts)["argv"]
    at = argv.index("--allowed-media-domains")
    assert tuple(argv[at + 1 : at + 3]) == hosts
    assert argv[at + 3].startswith("--"), "the flag takes all words up to the next flag"
    assert "--allowed-media-domains" not in engine_spec(VALID[1])["argv"]
    with pytest.raises(BadProfile, match="--allowed-media-domains"):
        engine_spec(ModelProfile(id="b", engine="vllm", weights="w", args=("--allowed-media-domains=evil.example",)))


@pytest.mark.parametrize(("parallel", "start"), [(8, 256), (300, 300)])
def test_vllm_is_given_enough_to_fill_its_batch_from_the_first_moment(parallel: int, start: int) -> None:
    spec = engine_spec(ModelProfile(id="b", engine="vllm", weights="/models/b", parallel=parallel))
    assert spec["concurrency"] == {"start": start, "max": 1024}


def test_a_url_engine_is_driven_and_not_started() -> None:
    spec = engine_spec(VALID[2])
    assert (spec["argv"], spec["base_url"], spec["served_model"]) == (None, "http://127.0.0.1:8000", "remote-name")
    assert spec["headers"] == {"Authorization": "Bearer secret"}
    assert "secret" not in repr(VALID[2])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"engine": "llamacpp"}, "needs 'weights'"),
        ({"engine": "vllm"}, "needs 'weights'"),
        ({"engine": "vllm", "weights": "m", "args": ("--host=0.0.0.0",)}, "set by the broker"),
        ({"engine": "vllm", "weights": "m", "env": {"VLLM_SERVER_DEV_MODE": "1"}}, "VLLM_SERVER_DEV_MODE"),
        ({"engine": "url"}, "needs 'base_url'"),
        ({"engine": "url", "base_url": "ftp://x"}, "needs 'base_url'"),
        ({"engine": "command"}, "needs 'argv'"),
        ({"engine": "command", "argv": ("serve",)}, "a place for {port}"),
    ],
)
def test_a_profile_that_cannot_be_served_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(BadProfile, match=said) as refused:
        engine_spec(ModelProfile(**({"id": "my-model"} | fields)))
    assert "'my-model'" in str(refused.value)


@pytest.mark.parametrize("engine", ["llamacpp", "vllm"])
def test_an_engine_that_is_started_knows_the_model_by_its_public_name(engine: Any) -> None:
    """Lines say `llama-8b`; an engine that knew only `llama-8b@fp8` would refuse each of them."""
    spec = engine_spec(ModelProfile(id="llama-8b@fp8", serves="llama-8b", engine=engine, weights="/models/x"))
    flag = spec["argv"].index("--alias" if engine == "llamacpp" else "--served-model-name")
    assert (spec["argv"][flag + 1], spec["served_model"]) == ("llama-8b", None)


@pytest.mark.parametrize("profile", VALID[2:3])
def test_a_server_that_runs_already_is_told_the_name_that_it_knows(profile: ModelProfile) -> None:
    assert engine_spec(profile)["served_model"] == "remote-name"
