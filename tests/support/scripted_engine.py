"""A fake OpenAI server for fault injection: `python scripted_engine.py --port N [...]`. Standard library only.

What a request does is written in its prompt, so a test's input file is its script:

    POISON      the process dies at once (status 13), as an engine does on a request that it cannot bear
    DROP        the connection is closed without an answer; the process lives
    ERROR500    500 each time        FLAKY  500 the first time that this prompt is seen (needs --log)
    BAD400      400 with an error body                     GARBAGE  200 with something that is not JSON
    NOUSAGE     an answer without usage                    SLOW     takes --slow seconds
    HANG        never answers        STUCK  never answers the first time that this prompt is seen (needs --log)

Answers are deterministic. `--log FILE` appends `pid<TAB>prompt` for each request at its start: the file outlives the
process, so a test can count executions. /health, /metrics, /stats, /v1/models as real servers have them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Engine:
    """What the threads of one server share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.slots = threading.Semaphore(options.slots)
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def count(self, name: str, by: int = 1) -> int:
        with self.lock:
            self.counts[name] += by
            return self.counts[name]

    def begin(self) -> None:
        """One more is computed; how many at once is kept beside the log."""
        computing = self.count("computing")
        if self.options.log is not None:
            with self.lock:
                _beside(self.options.log).write_text(str(max(computing, most_at_once(self.options.log))))

    def note(self, prompt: str) -> int:
        """Log the request; how often this prompt has been seen, over all processes with the same log."""
        if self.options.log is None:
            return 1
        with self.lock:
            with self.options.log.open("a", encoding="utf-8") as log:
                log.write(f"{os.getpid()}\t{prompt}\n")
            return executions(self.options.log)[prompt]


def executions(log: Path) -> Counter[str]:
    """Prompt → how often it was started, from a `--log` file."""
    if not log.exists():
        return Counter()
    rows = log.read_text(encoding="utf-8").splitlines()
    return Counter(row.partition("\t")[2] for row in rows)


def most_at_once(log: Path) -> int:
    """How many requests at once were computed at most, from beside a `--log` file."""
    return int(_beside(log).read_text()) if _beside(log).exists() else 0


def _beside(log: Path) -> Path:
    return log.with_name(f"{log.name}.most")


def prompt_of(body: dict[str, Any]) -> str:
    """The one text that matters, of any endpoint's request."""
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body.get("prompt", body.get("input", "")))


def answer_text(prompt: str) -> str:
    return f"answer {hashlib.sha256(prompt.encode()).hexdigest()[:12]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: without this each answer waits 40 ms
    engine: Engine

    def log_message(self, *_: object) -> None:
        """Silence: requests are in --log."""

    def do_GET(self) -> None:
        counts = self.engine.counts
        if self.path == "/health":
            self.answer(200, b"")
        elif self.path == "/stats":
            self.answer_json(200, dict(counts))
        elif self.path == "/v1/models":
            self.answer_json(200, {"object": "list", "data": [{"id": self.engine.options.model, "object": "model"}]})
        elif self.path == "/metrics":
            rows = [f'scripted:{name}{{engine="0"}} {counts[name]}' for name in ("running", "waiting", "preemptions")]
            self.answer(200, "\n".join([*rows, ""]).encode())
        else:
            self.answer_json(404, {"error": {"message": f"no such path {self.path}"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = prompt_of(body)
        engine, options = self.engine, self.engine.options
        number = engine.count("requests")
        if number <= options.refuse_first:
            self.answer_json(503, {"error": {"message": "busy"}})
            return
        if options.key is not None and self.headers.get("Authorization") != f"Bearer {options.key}":
            self.answer_json(401, {"error": {"message": "wrong key"}})
            return
        engine.count("waiting")
        with engine.slots:
            engine.count("waiting", -1)
            engine.count("running")
            try:
                self.serve(body, prompt, engine.note(prompt))
            finally:
                engine.count("running", -1)
                engine.count("served")

    def serve(self, body: dict[str, Any], prompt: str, seen: int) -> None:
        options = self.engine.options
        if "POISON" in prompt:
            time.sleep(options.poison_delay)
            os._exit(13)
        self.engine.begin()
        time.sleep(options.slow if "SLOW" in prompt else options.latency)
        self.engine.count("computing", -1)  # before the answer: who gets it may ask the next at once
        if "HANG" in prompt or ("STUCK" in prompt and seen == 1):
            threading.Event().wait()
        if "DROP" in prompt:
            self.close_connection = True
        elif "ERROR500" in prompt or ("FLAKY" in prompt and seen == 1):
            self.answer_json(500, {"error": {"message": "scripted failure"}})
        elif "BAD400" in prompt:
            self.answer_json(400, {"error": {"message": "scripted refusal", "code": "bad_request"}})
        elif "GARBAGE" in prompt:
            self.answer(200, b'<html>{"choices": [NaN')
        else:
            self.answer_json(200, self.completion(body, prompt))

    def completion(self, body: dict[str, Any], prompt: str) -> dict[str, Any]:
        text = answer_text(prompt)
        answer: dict[str, Any] = {
            "id": "cmpl-1",
            "object": "chat.completion",
            "model": body.get("model"),
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop"}
            ],
        }
        if "NOUSAGE" not in prompt:
            answer["usage"] = {
                "prompt_tokens": len(prompt.split()),
                "completion_tokens": 2,
                "total_tokens": len(prompt.split()) + 2,
                "prompt_tokens_details": {"cached_tokens": 1},
            }
        return answer

    def answer_json(self, status: int, value: object) -> None:
        self.answer(status, json.dumps(value).encode())

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, *_: object) -> None:
        """A client that went away is part of many tests."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--slow", type=float, default=2.0)
    parser.add_argument("--slots", type=int, default=8, help="requests computed at once; others wait")
    parser.add_argument("--refuse-first", type=int, default=0, help="answer 503 to this many requests")
    parser.add_argument("--poison-delay", type=float, default=0.05)
    parser.add_argument("--key", default=None, help="demand this bearer token")
    parser.add_argument("--log", type=Path, default=None)
    parser.add_argument("--die-at-start", type=int, default=None, help="exit with this status instead of serving")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument(
        "--child", type=Path, default=None, help="start a child in a session of its own; its pid goes here"
    )
    options = parser.parse_args()
    if options.die_at_start is not None:
        print("scripted death at start", file=sys.stderr)
        return int(options.die_at_start)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.ignore_sigterm else lambda *_: os._exit(0))
    if options.child is not None:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        options.child.write_text(str(child.pid))
    Handler.engine = Engine(options)
    server = Server((options.host, options.port), Handler)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
