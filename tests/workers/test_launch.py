"""What is put onto a machine."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import pytest

from tests.support.fake_broker import schema_errors
from workers.errors import BadProfile
from workers.launch import machine_start
from workers.package import build_agent
from workers.profile import ModelProfile

PINNED = f"vllm/vllm-openai@sha256:{'0' * 64}"


def start(launch: Any = "process", url: str = "http://127.0.0.1:1", market: str = "", **changes: Any) -> Any:
    fields: dict[str, Any] = {"id": "m", "engine": "vllm", "weights": "w", "launches": ("process", "container")}
    return machine_start(
        launch=launch,
        rental_id="rental_1",
        broker_url=url,
        bootstrap_token="once",
        profile=ModelProfile(**(fields | changes)),
        dead_man_s=60,
        market=market,
        python="/usr/bin/python3",
    )


def test_the_agent_is_the_same_bytes_each_time_and_nothing_but_the_agent() -> None:
    first, second = build_agent(), build_agent()
    assert first == second
    names = zipfile.ZipFile(io.BytesIO(first.content)).namelist()
    assert names == sorted(names)
    assert "workers/agent/driver.py" in names
    assert all(name in ("__main__.py", "workers/__init__.py") or name.startswith("workers/agent/") for name in names)


def test_a_process_runs_the_agent_with_its_configuration_beside_it() -> None:
    made = start()
    assert made.argv == ("/usr/bin/python3", "{dir}/agent.pyz", "run", "--config", "{dir}/agent.json")
    assert schema_errors("config", json.loads(made.files["agent.json"])) == []
    assert "once" not in str(made.env)
    assert made.image is None


def test_a_container_runs_it_with_the_images_own_python() -> None:
    made = start("container", image="vllm:1", shm_mib=1024)
    assert made.argv == ("/broker/agent.pyz", "run", "--config", "/broker/agent.json")
    assert (made.image, made.entrypoint, made.shm_mib) == ("vllm:1", ("python3",), 1024)
    assert start("container", image="vllm:1", entrypoint=("/opt/py",)).entrypoint == ("/opt/py",)


def test_a_container_keeps_weights_and_compiled_kernels_on_its_host() -> None:
    made = start("container", image="vllm:1")
    assert made.cache
    assert all(folder.startswith("/cache/") for folder in made.env.values())
    assert {"HF_HOME", "VLLM_CACHE_ROOT"} <= made.env.keys()
    without = start("container", image="vllm:1", cache=False, user="2000:0")
    assert (without.cache, without.env, without.user) == (False, {}, "2000:0")


def test_a_machine_of_the_internet_fetches_the_agent_with_nothing_but_its_single_use_token() -> None:
    made = start("vm", "https://b.example", "aws", launches=("vm",), image=PINNED, shm_mib=1024)
    config = json.loads(made.files["agent.json"])
    assert schema_errors("config", config) == []
    assert (config["metadata"], config["alive_file"]) == ("aws", "/state/alive")
    assert set(made.files) == {"agent.json"}
    download = made.downloads["agent.pyz"]
    assert download.url == "https://b.example/worker/v1/rentals/rental_1/agent.pyz"
    assert (download.sha256, download.bearer) == (build_agent().sha256, "once")
    assert "once" not in repr(download)


@pytest.mark.parametrize(
    ("launch", "changes", "said"),
    [
        ("vm", {}, "cannot be launched as 'vm'"),
        ("kubernetes", {"launches": ("kubernetes",)}, "no way is known"),
        ("vm", {"launches": ("vm",), "url": "https://b.example", "image": "vllm:latest"}, "by digest"),
        ("vm", {"launches": ("vm",), "image": PINNED}, "cannot dial http://127.0.0.1:1"),
        ("vm", {"launches": ("vm",), "image": PINNED, "url": "http://b.example"}, "in clear"),
        ("container", {}, "needs 'image'"),
    ],
)
def test_a_launch_that_cannot_work_is_refused(launch: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadProfile, match=said):
        start(launch, **changes)
