"""All markets polled at once by a real broker, each from a slow server of its own: one never answers, one says Retry-After.

The others must not wait for those two. `ratio` is the time from the broker's first request to the last commit of a healthy
market, over what the slowest healthy market took by itself from its first request to its last answer. Answers are those of the
adapters' tests; a server thinks `--think` seconds for each request and more for each market in turn, up to twice as long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.markets.sources.cases import Case
from tests.markets.sources.gathered import CASES
from tests.markets.sources.loopback import Fault, Loopback
from tests.support.real_broker import RealBroker, real_broker

HUNG, LATER = "koyeb", "shadeform"
PATIENCE_S = 60.0
# What the settings must hold for the answers to be of what is asked.
NEEDS = {
    "azure": ['regions = ["eastus", "westeurope"]'],
    "kubernetes": ["[providers.kubernetes.cluster]", 'rates = { "h100-sxm" = 2.39 }'],
    "oci": ['regions = ["eu-frankfurt-1"]'],
    "salad": ['organization = "acme"', 'countries = ["US", "NO"]'],
    "scaleway": ['regions = ["fr-par-1", "pl-waw-2"]'],
}
# Google's own library asks, with the key of a service account: it has a rig of its own (tests/markets/sources/case_gcp.py).
POLLED = tuple(case for case in CASES if case.name != "gcp")


@dataclass(eq=False)
class Slow(Loopback):
    """A market that thinks `think_s` before each answer. Times are of the wall's clock, as are the broker's in its log."""

    think_s: float = 0
    first: float | None = None
    last: float | None = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.first = self.first or time.time()
        await asyncio.sleep(self.think_s)
        try:
            return await super()._answer(request)
        finally:
            self.last = time.time()


def measure(think_s: float) -> dict[str, Any]:
    """One broker from its start until every healthy market has been written down."""
    with tempfile.TemporaryDirectory() as folder, markets(think_s) as apis:
        given = "".join(_section(case, apis[case.name]) for case in POLLED)
        with real_broker(Path(folder), settings="sources = ['public']\n", also=given) as broker:
            healthy = sorted(set(apis) - {HUNG, LATER})
            missing = _await(broker, healthy)
            if missing:
                raise SystemExit(f"not written down within {PATIENCE_S:g} s: {', '.join(missing)}")
            commits = _commits(broker)
            offers = {name: commits[name][1] for name in healthy}
        began = min(apis[name].first or 0 for name in healthy)
        alone = {name: (apis[name].last or 0) - (apis[name].first or 0) for name in healthy}
        slowest = max(alone, key=lambda name: alone[name])
        last = max(healthy, key=lambda name: commits[name][0])
        return {
            "markets": len(apis),
            "offers": sum(offers.values()),
            "hung_commits": HUNG in commits,
            "later_requests": len(apis[LATER].requests),
            "slowest": slowest,
            "slowest_s": round(alone[slowest], 3),
            "last": last,
            "last_commit_s": round(commits[last][0] - began, 3),
            "ratio": round((commits[last][0] - began) / alone[slowest], 3),
            "load": round(os.getloadavg()[0], 1),
        }


def _await(broker: RealBroker, healthy: list[str]) -> list[str]:
    """Those that are not written down in time."""
    deadline = time.monotonic() + PATIENCE_S
    while (missing := sorted(set(healthy) - set(_commits(broker)))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return missing


@contextmanager
def markets(think_s: float) -> Iterator[dict[str, Slow]]:
    """One server for each market, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    apis = {case.name: _api(case, think_s * (1 + place / len(POLLED))) for place, case in enumerate(POLLED)}

    async def each(step: str) -> None:
        await asyncio.gather(
            *(getattr(api, step)(*((None,) * 3 if step == "__aexit__" else ())) for api in apis.values())
        )

    asyncio.run_coroutine_threadsafe(each("__aenter__"), loop).result()
    try:
        yield apis
    finally:
        asyncio.run_coroutine_threadsafe(each("__aexit__"), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _api(case: Case, think_s: float) -> Slow:
    faults = {HUNG: (Fault(hangs=True),), LATER: (Fault(429, {"Retry-After": "600"}),)}.get(case.name, ())
    return Slow(case.answers, faults=faults, think_s=think_s)


def _section(case: Case, api: Slow) -> str:
    credentials = ", ".join(f"{name} = {value!r}" for name, value in case.credentials.items())
    lines = [f"[providers.{case.name}]", f'url = "{api.url}{case.base_path}"', f"credentials = {{ {credentials} }}"]
    lines += NEEDS.get(case.name, ())
    return "\n".join(["", *lines, ""])


def _commits(broker: RealBroker) -> dict[str, tuple[float, int]]:
    """Market → when its first answer was written down, and how many offers that was."""
    found: dict[str, tuple[float, int]] = {}
    for line in (broker.folder / "broker.log").read_text().splitlines():
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "offers.stored":
            at = datetime.fromisoformat(event["timestamp"]).timestamp()
            found.setdefault(event["market"], (at, event["offers"]))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--think", type=float, default=1.0, help="seconds that a server thinks before each answer, at least"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.think)
    print(json.dumps(result) if options.json else "\n".join(f"{name}: {value}" for name, value in result.items()))
