"""The engine profiles over HTTP."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from broker.control.plan import Planner
from broker.control.validate import Validator
from jobs.clock import db_now
from markets import price_book
from markets.offer import Accelerator
from tests.support.wire_agent import offer
from workers.engine_profile import EngineProfile, Speculation
from workers.engines import SERVERS
from workers.profile import EngineKind, ModelProfile

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


DIGEST = "sha256:" + "0" * 64
# By engine: where alone it runs, and the price there: the dearer its place, the less the price alone would choose it.
PLACES: dict[EngineKind, tuple[Accelerator, str]] = {
    "vllm": (Accelerator(kind="nvidia", name="H100", form="SXM", memory_mib=81_559, count=2), "4"),
    "sglang": (Accelerator(kind="amd", name="MI300X", memory_mib=196_608, count=2), "5"),
    "trtllm": (Accelerator(kind="nvidia", name="H200", form="SXM", memory_mib=143_771, count=4), "9"),
    "vllm-tpu": (Accelerator(kind="tpu", name="v5e", memory_mib=16_384, count=8), "10"),
    "vllm-neuron": (Accelerator(kind="trainium", name="trainium2", memory_mib=98_304, count=16), "20"),
}
IMAGES = {"sglang": f"lmsysorg/sglang:v0.5-rocm700-mi30x@{DIGEST}"}


@pytest.mark.parametrize("engine", PLACES)
async def test_a_profile_of_each_engine_is_planned_where_it_can_run(server: Any, engine: EngineKind) -> None:
    """A batch names the profile; the plan rents the only machine that has the accelerators for it, however dear that is."""
    models = server.services.models
    speeds = {
        chip.name: (10_000.0, 1_000.0) for chip, _ in PLACES.values()
    }  # of none it is said that it has no speed there
    for kind, (chip, _) in PLACES.items():
        image = IMAGES.get(kind, f"{SERVERS[kind].image}@{DIGEST}")
        options = EngineProfile(tensor_parallel=chip.count)
        models[f"tiny@{kind}"] = ModelProfile(
            id=f"tiny@{kind}", serves="tiny", engine=kind, weights="org/tiny", image=image, options=options,
            launches=("container",), tokens_per_s=speeds,
        )  # fmt: skip
    offers = [
        replace(offer(sku=kind), accelerator=chip, price=Decimal(price), launch="container")
        for kind, (chip, price) in PLACES.items()
    ]
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, "sandbox", offers, now_us=await db_now(session))
    batch = await server.new_batch(x_broker={"engine_profile": f"tiny@{engine}"})
    await Validator(server.services).step()
    await Planner(server.services).step()
    told = (await server.call("GET", f"/v1/batches/{batch['id']}/explain")).json
    assert [each["offer_key"].split("/")[3] for each in told["chosen"]] == [engine], told["funnel"]
