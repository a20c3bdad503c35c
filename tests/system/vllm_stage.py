"""The last stage of CI: the agent finishes a batch on a real `vllm serve`, in real containers, on hosts reached by SSH.

Midway the container on the first host is killed, and then the whole host vanishes: the batch resumes on the second
host. When the first host is back its own record settles what it cost. Run by `.ci/vllm`; needs root.

    python -m tests.system.vllm_stage --work DIR --state DIR

Ends with one JSON line; exit 1 when anything that was promised is not so, with the reasons on standard error.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from tests.system.hosts.machine import RigError, say, stop_commands
from tests.system.hosts.rig import Rig
from tests.system.vllm_broker import MODEL, Broker
from tests.system.vllm_engine import Worker, cost, forget, kept_record, worker_on

T = TypeVar("T")

# A minute of work on a quick machine: a disk that stalled everybody for 16 s has ended a batch of 240 before its kill, and
# an engine that let its metrics wait one of 480.
LINES = 960
TOKENS = 600
PARALLEL = 16
PRICES = {"host-a": Decimal("0.37"), "host-b": Decimal("0.59")}
KILLED = 137  # docker's exit code for SIGKILL
# A container needs a minute and more until vLLM is healthy when the machine is busy; an image is never pulled here.
START_S = 420
WORK_S = 600
END_S = 120
PHASES = ("boot", "pull", "ready", "load", "warm_up", "first_line")


class Stage:
    """The story in its order. `wrong` collects every promise that was not kept."""

    def __init__(self, work: Path, rig: Rig) -> None:
        self.rig = rig
        self.host_a, self.host_b = rig.host("host-a"), rig.host("host-b")
        self.broker = Broker(work / "data")
        self.wrong: list[str] = []
        self.told: dict[str, Any] = {"total": LINES}
        self._began = time.monotonic()
        self._batch = ""

    def run(self) -> None:
        self._prepare()
        self.broker.start()
        self._submit()
        first = self._first_worker()
        committed = self._kill_midway(first)
        second = self._finish_elsewhere(first)
        self._check_engines(first, second, committed)
        self._check_answers()
        self._check_books(first, second)
        self._check_starts(first)
        self._check_rest()

    def want(self, kept: bool, promise: str) -> None:
        """Note a promise that was not kept; the story goes on as far as it can."""
        if not kept:
            self.wrong.append(promise)
            say(f"NOT KEPT: {promise}")

    # --- the story ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Hosts, settings, and trust: the line that `broker hosts` prints is all that a host needs."""
        self.rig.trust(None)
        described = self.rig.up()
        self.told["rig_s"] = self._lap()
        hosts = [(host, PRICES[host.name]) for host in self.rig.hosts]
        for host in self.rig.hosts:
            forget(host.folder / "home")
        image, weights = str(described["image_id"]), str(described["tiny_model"])
        self.broker.configure(hosts, image=image, weights=weights, parallel=PARALLEL)
        before = self.broker.command("hosts")
        self.want([each["state"] for each in before["data"]] == ["NOT OK"] * 2, f"no host lets strangers in: {before}")
        self.rig.trust(before["trust_line"])
        after = self.broker.command("hosts")
        self.want([each["state"] for each in after["data"]] == ["ok"] * 2, f"the trust line lets us in: {after}")

    def _submit(self) -> None:
        lines = [
            json.dumps(
                {
                    "custom_id": f"line-{number}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {
                        "model": MODEL,
                        "max_tokens": TOKENS,
                        "ignore_eos": True,
                        "messages": [{"role": "user", "content": f"Tell me about the number {number:03}."}],
                    },
                }
            )
            for number in range(LINES)
        ]
        with self.broker.client() as client:
            content = ("input.jsonl", "\n".join(lines).encode())
            file = client.files.create(file=content, purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        self._batch = batch.id

    def _first_worker(self) -> Worker:
        """The plan's choice: the cheaper host. Returns once its engine computes."""
        self._until(lambda: worker_on(self.host_a) or worker_on(self.host_b), "a container runs", START_S)
        first = worker_on(self.host_a)
        if first is None:
            raise AssertionError("the plan did not choose the cheaper host-a")
        say(f"{first.tag} runs on host-a")
        self._until(lambda: first.read() and first.prompts > 0, "vLLM on host-a computes", START_S, first)
        self.told["start_s"] = self._lap()
        return first

    def _kill_midway(self, first: Worker) -> int:
        """SIGKILL for the container, then the plug of its host; the lines that were committed by then.

        The network goes first, so that the broker cannot have seen the end when the host vanishes.
        """
        # Only the broker is asked: a busy engine may take 20 s to tell its metrics, and the batch has ended meanwhile.
        self._until(lambda: self._completed() >= LINES // 5, "a fifth is committed", WORK_S, first)
        self.host_a.cut()
        first.read()
        self.host_a.docker("kill", first.tag)
        self._until(lambda: first.inspect()["State"]["Status"] == "exited", "docker has ended the container", 60)
        self.told["exit_code"] = first.inspect()["State"]["ExitCode"]
        self.host_a.crash()
        committed = self._completed()
        self.told["at_kill_s"] = self._lap()
        self.told |= {"committed_at_kill": committed, "prompts_at_kill": first.prompts}
        say(f"killed at {committed} of {LINES} lines, {first.prompts} prompts computed; host-a is gone")
        self.want(self.told["exit_code"] == KILLED, f"the container ends with {KILLED}: {self.told['exit_code']}")
        self.want(LINES // 5 <= committed < LINES, f"the kill comes midway: at {committed} lines")
        self.want(self.broker.spent().get(first.tag, 0) > 0, "the cost is accrued while the batch runs")
        return committed

    def _finish_elsewhere(self, first: Worker) -> Worker:
        """Host-b takes over while host-a is away, and its meter runs in the books all the time."""
        second = self._until(lambda: worker_on(self.host_b), "host-b takes over", START_S)
        say(f"{second.tag} runs on host-b")
        self._until(lambda: second.read() and second.prompts > 0, "vLLM on host-b computes", START_S, second)
        self.told["resumed_s"] = self._lap()

        def is_over() -> bool:
            second.read()
            return self._state().status in ("completed", "failed", "expired", "cancelled")

        self._until(is_over, "the batch has ended", WORK_S, second)
        self.told["finished_s"] = self._lap()
        self.want(second.read(), "the engine on host-b still answers when the batch has ended")
        self.want(
            self.broker.spent().get(second.tag, 0) > 0, "host-b's meter is booked although host-a does not answer"
        )
        rentals = self._rentals()
        away = rentals[first.tag]["state"]
        self.want(
            away in ("running", "releasing"),
            f"the rental on the vanished host is not settled before its host is back: {away}",
        )
        self.want(set(rentals) == {first.tag, second.tag}, f"two machines were rented, no more: {sorted(rentals)}")
        self.host_a.boot()
        self._until(self._all_ended, "both rentals have ended and are settled", END_S)
        self.told["settled_s"] = self._lap()
        return second

    # --- the reckoning -----------------------------------------------------------------------------------------------

    def _check_engines(self, first: Worker, second: Worker, committed: int) -> None:
        """Nothing that was committed is computed again: vLLM counts its prompts itself."""
        # read a moment before the kill: the engine had computed at least so many, and no fewer than were committed
        counted = max(first.prompts, committed)
        uncommitted = counted - committed
        self.told |= {"uncommitted_at_kill": uncommitted, "prompts_after": second.prompts}
        self.want(
            counted + second.prompts <= LINES + uncommitted,
            f"at most {LINES} prompts and the {uncommitted} uncommitted at the kill were computed: "
            f"{counted} on host-a, {second.prompts} on host-b",
        )
        rentals = self._rentals()
        lines = [rentals[each.tag]["lines"] for each in (first, second)]
        self.want(lines == [committed, LINES - committed], f"each line was committed by one machine: {lines}")

    def _check_answers(self) -> None:
        with self.broker.client() as client:
            batch = client.batches.retrieve(self._batch)
            counts = batch.request_counts
            self.told |= {"batch": batch.id, "status": batch.status, "completed": counts.completed if counts else 0}
            self.want(batch.status == "completed", f"the batch is completed: {batch.status}")
            self.want(batch.error_file_id is None, "no line failed")
            if batch.output_file_id is None:
                self.want(False, "there is an output file")
                return
            answers = [json.loads(row) for row in client.files.content(batch.output_file_id).text.splitlines()]
        ids = Counter(answer["custom_id"] for answer in answers)
        self.told["duplicates"] = sum(ids.values()) - len(ids)
        self.want(
            ids == Counter(f"line-{number}" for number in range(LINES)), f"every line is answered once: {len(ids)}"
        )
        written = [answer["response"]["body"]["usage"]["completion_tokens"] for answer in answers]
        self.want(set(written) == {TOKENS}, f"every answer has its {TOKENS} tokens: {sorted(set(written))}")
        texts = [answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers]
        self.want(all(texts) and len(set(texts)) > LINES // 2, f"answers are text: {len(set(texts))} different ones")

    def _check_books(self, first: Worker, second: Worker) -> None:
        """The books against the hosts' own records; both are ended, so all of it is final."""
        ledger = self.broker.get("/v1/ledger/entries?limit=1")
        self.want(ledger["balanced"] is True and not ledger["findings"], f"the books are clean: {ledger['findings']}")
        self.want(Decimal(ledger["held_usd"]) == 0, f"every hold is given back: {ledger['held_usd']}")
        booked = self.broker.spent()
        billed = {}
        for worker in (first, second):
            record = kept_record(worker.host, worker.tag) or worker.inspect()
            billed[worker.tag] = cost(record, PRICES[worker.host.name])
        self.told["cost_usd"] = str(sum(booked.values()))
        self.want(booked == billed, f"the books {booked} are what the hosts' records say {billed}")
        rentals = self._rentals()
        ends = [(rentals[each.tag]["end_reason"], rentals[each.tag]["exit_status"]) for each in (first, second)]
        self.want(ends[0] == ("failed", -9), f"the first rental was killed: {ends[0]}")
        self.want(ends[1][1] == 0 or ends[1][0] == "released", f"the second one ended in peace: {ends[1]}")

    def _check_starts(self, first: Worker) -> None:
        """How the containers were started, in docker's words, and how long each phase took, in the broker's."""
        record = kept_record(first.host, first.tag) or first.inspect()
        options, places = record["HostConfig"], {mount["Destination"] for mount in record["Mounts"]}
        self.want(options["SecurityOpt"] == ["no-new-privileges"], f"no new privileges: {options['SecurityOpt']}")
        self.want(options["ShmSize"] == 256 * 1024 * 1024, f"shared memory as asked for: {options['ShmSize']}")
        self.want(places == {"/broker", "/cache"}, f"the files and the cache are mounted: {places}")
        starts = {each["place"]: each for each in self.broker.get("/v1/market/timings")["data"]}
        self.want(set(starts) == {"host-a", "host-b"}, f"both hosts' starts are known: {sorted(starts)}")
        phases = {
            place: {name: each[name] and each[name]["newest"] for name in PHASES} for place, each in starts.items()
        }
        self.told["starts"] = phases
        self.want(
            all(value is not None for each in phases.values() for value in each.values()),
            f"every phase is told: {phases}",
        )

    def _check_rest(self) -> None:
        """The broker ends cleanly and nothing runs any more."""
        status = self.broker.stop()
        self.want(status == 0, f"the broker ends cleanly: {status}")
        running = {host.name: host.docker("ps", "-q").split() for host in self.rig.hosts}
        self.want(not any(running.values()), f"no container is left running: {running}")

    # --- looking -----------------------------------------------------------------------------------------------------

    def _state(self) -> Any:
        with self.broker.client() as client:
            return client.batches.retrieve(self._batch)

    def _completed(self) -> int:
        counts = self._state().request_counts
        return int(counts.completed) if counts else 0

    def _rentals(self) -> dict[str, dict[str, Any]]:
        """Machines that were rented for the batch, by tag."""
        return {each["rental"]: each for each in self.broker.get(f"/v1/batches/{self._batch}/placements")["data"]}

    def _all_ended(self) -> bool:
        ended = all(each["state"] == "ended" for each in self._rentals().values())
        return ended and Decimal(self.broker.get("/v1/ledger/entries?limit=1")["held_usd"]) == 0

    def _until(self, look: Callable[[], T], what: str, within_s: float, worker: Worker | None = None) -> T:
        """What `look` finds, as soon as that is something. AssertionError with the logs when it never is."""
        give_up = time.monotonic() + within_s
        while not (found := look()):
            if time.monotonic() > give_up:
                agent = f"\n--- {worker.tag}\n{worker.logs()[-6000:]}" if worker else ""
                raise AssertionError(f"not within {within_s} s: {what}{agent}\n--- broker\n{self.broker.tail()}")
            time.sleep(0.3)
        return found

    def _lap(self) -> float:
        return round(time.monotonic() - self._began, 1)


def _leave(number: int, frame: FrameType | None) -> None:
    stop_commands()
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a fresh folder for this run")
    parser.add_argument("--state", type=Path, required=True, help="the rig's folder; what it holds is used again")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    given.work.mkdir(parents=True, exist_ok=True)
    given.state.mkdir(parents=True, exist_ok=True)
    rig = Rig(given.state)
    stage = Stage(given.work.resolve(), rig)
    try:
        stage.run()
    except (AssertionError, RigError, OSError) as failure:
        stage.wrong.append(f"{type(failure).__name__}: {failure}")
    finally:
        stage.broker.stop()
        rig.down()
    for promise in stage.wrong:
        print(f"vllm stage: {promise}", file=sys.stderr)
    print(json.dumps({"ok": not stage.wrong, **stage.told}))
    return 1 if stage.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
