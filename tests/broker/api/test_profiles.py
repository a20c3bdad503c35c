"""The engine profiles over HTTP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from workers.engine_profile import EngineProfile, Speculation
from workers.profile import ModelProfile

TUNED = ModelProfile(
    id="tiny@fp8",
    serves="tiny",
    engine="vllm",
    weights="org/tiny",
    precision="fp8",
    image="engine@sha256:1",
    options=EngineProfile(
        quantization="fp8", tensor_parallel=2, speculation=Speculation(method="ngram", tokens=3, lookup=4)
    ),
)


async def test_each_way_to_serve_a_model_is_listed_with_what_was_set_and_what_is_run(server: Any) -> None:
    server.services.models[TUNED.id] = TUNED
    server.services.models["tiny@exact"] = replace(TUNED, id="tiny@exact", options=EngineProfile(batch_invariant=True))
    told = {each["id"]: each for each in (await server.call("GET", "/v1/profiles")).json["data"]}
    assert list(told) == ["tiny", "tiny@exact", "tiny@fp8"]
    fp8 = told["tiny@fp8"]
    assert (fp8["serves"], fp8["engine"], fp8["precision"], fp8["accelerators"]) == ("tiny", "vllm", "fp8", 2)
    assert fp8["options"] == {
        "tensor_parallel": 2,
        "quantization": "fp8",
        "speculation": {"method": "ngram", "tokens": 3, "model": None, "lookup": 4},
    }
    assert "--tensor-parallel-size 2" in " ".join(fp8["command"])
    assert told["tiny@exact"]["batch_invariant"]
    assert (told["tiny"]["command"], told["tiny"]["options"]) == (None, {}), (
        "a server that runs already is not ours to run"
    )
