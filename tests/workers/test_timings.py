"""The phases of coming up, as the agent tells them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.agent_process import scripted_profile, until
from tests.support.fake_broker import request_line
from tests.workers.conftest import StartAgent, StartBroker
from workers.agent.timings import Timings
from workers.engines.server import Server
from workers.engines.sglang import SGLANG
from workers.engines.vllm import VLLM

# as vLLM 0.32 wrote them here (the CPU build), and SGLang's documents show them
VLLM_LOG = [
    "INFO 11-27 16:44:06 [weight_utils.py:533] Time spent downloading weights for org/m: 81.250000 seconds",
    "INFO 11-27 16:44:09 [default_loader.py:502] Loading weights took 2.75 seconds",
    "INFO 11-27 16:44:21 [core.py:403] init engine (profile, create kv cache, warmup model) took 11.50 s (compilation: 3.00 s)",
]
SGLANG_LOG = ["[2026-11-27 16:44:09] Load weight end. elapsed=4.50 s, type=LlamaForCausalLM, dtype=torch.bfloat16"]


@pytest.mark.parametrize(
    ("server", "rows", "known"),
    [
        (VLLM, VLLM_LOG, {"download_s": 81.25, "load_s": 2.75, "warm_up_s": 11.5}),
        (SGLANG, SGLANG_LOG, {"load_s": 4.5}),
        (VLLM, ["Loading weights took forever seconds"], {}),
    ],
)
def test_an_engines_own_words_are_its_phases(server: Server, rows: list[str], known: dict[str, float]) -> None:
    timings = Timings(server.phases)
    timings.read(rows)
    assert timings.known == known


def test_a_restart_after_a_crash_says_nothing_of_a_fresh_machine() -> None:
    timings = Timings({})
    timings.started(40.0)
    timings.answered()
    first = dict(timings.known)
    timings.started(2.0)
    timings.answered()
    assert timings.known == first


@pytest.mark.parametrize("note", ["", "[]", '{"pull_ms": null}'])
def test_a_hosts_note_that_cannot_be_read_is_left_out(tmp_path: Path, note: str) -> None:
    (tmp_path / "pull.json").write_text(note)
    timings = Timings({})
    timings.read_pull(tmp_path)
    assert timings.known == {}


async def test_the_broker_is_told_with_each_heartbeat(start_broker: StartBroker, start_agent: StartAgent) -> None:
    profile = scripted_profile()
    broker = await start_broker(profile)
    broker.stop_when_done = False
    broker.add_shard([request_line("c-1", "say 1")], first_idx=0)
    agent = await start_agent(broker, profile)
    await until(lambda: any("first_line_s" in beat["timings"] for beat in broker.heartbeats), "all phases are told")
    assert broker.heartbeats[-1]["timings"]["start_s"] > 0
    broker.drain = True
    assert await agent.exit_status() == 0, agent.stderr()
