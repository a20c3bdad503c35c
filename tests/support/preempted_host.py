"""A spot machine in a network of its own: `unshare -n python -m tests.support.preempted_host FOLDER ACTION`.

169.254.169.254 is an address of its loopback, with a metadata service on port 80 as AWS has it. A real agent with a
scripted engine works there; after some parts' worth of lines the service announces ACTION (`interruption` or `rebalance`).
Then a second agent, to which nothing is announced, does the rest. Prints one JSON object with what happened.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.agent_process import AgentProcess, scripted_profile, until
from tests.support.fake_broker import FakeBroker, request_line
from tests.support.fake_metadata import FakeMetadata
from workers.engines import engine_spec

ADDRESS = "169.254.169.254"
NOTICE_S = 120
LINES = 300
# every part is cut by the end, not by its size: what is saved was saved in the window
NEVER = {"lines": 1000, "seconds": 600, "bytes": 100_000_000}


async def preempted(folder: Path, action: str) -> dict[str, Any]:
    """One preemption, as the broker, the machine and the engine saw it."""
    log = folder / "engine.log"
    profile = scripted_profile("--latency", "0.2", "--slots", "4", "--log", str(log), parallel=4)
    async with FakeMetadata(ADDRESS, 80) as imds, FakeBroker(engine=engine_spec(profile), part=NEVER) as broker:
        shard = broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(LINES)])
        first = await AgentProcess.start(folder / "first", broker, profile, market="aws")
        try:
            await until(lambda: len(shard.in_flight) > 0 and "instance-action" in str(imds.asked), "it works and asks")
            await until(lambda: log.exists() and log.read_text().count("\n") > 10, "lines are under way")
            ends_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=NOTICE_S)
            announced_at = time.monotonic()
            if action == "rebalance":
                imds.rebalance = {"noticeTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
            else:
                imds.action = {"action": "terminate", "time": ends_at.strftime("%Y-%m-%dT%H:%M:%SZ")}
            status = await first.exit_status(NOTICE_S)
        finally:
            await first.close()
        gone_after_s = time.monotonic() - announced_at
        saved = sorted(broker.done)
        commits = len(broker.commits)
        second = await AgentProcess.start(
            folder / "second", broker, profile, rental_id="rental_2"
        )  # elsewhere: no announcement reaches it
        try:
            status_elsewhere = await second.exit_status(60)
        finally:
            await second.close()
        prompts = [row.partition("\t")[2] for row in log.read_text().splitlines()]
        return {
            "statuses": [status, status_elsewhere],
            "events": [each["source"] for each in first.events("notice.seen")],
            "told_s": [beat["notice_in_s"] for beat in broker.heartbeats if beat["notice_in_s"] is not None][:1],
            "goodbyes": [each["reason"] for each in broker.goodbyes],
            "gone_after_s": gone_after_s,
            "saved": len(saved),
            "commits_in_window": commits,
            "done": len(broker.done),
            "saved_and_done_again": sum(prompts.count(f"say {number}") > 1 for number in saved),
            "outcomes": dict(broker.outcomes),
        }


def main() -> None:
    for command in (("ip", "link", "set", "lo", "up"), ("ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo")):
        subprocess.run(command, check=True)
    print(json.dumps(asyncio.run(preempted(Path(sys.argv[1]), sys.argv[2]))))


if __name__ == "__main__":
    main()
