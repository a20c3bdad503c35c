"""What the process says on standard error: one event a line, of the request that it belongs to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from broker.settings import Settings

SAY = """
import structlog
from broker.cli import logs
logs.configure("info", {form!r})
structlog.get_logger().info("batch.ended", batch="batch_1", text="two\\nlines")
structlog.get_logger().debug("not.said")
try:
    secret = "hunter2"
    raise ValueError("wrong")
except ValueError:
    structlog.get_logger().exception("loop.defect", loop="plan")
"""


def said(form: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SAY.format(form=form)], capture_output=True, text=True, check=True)
    assert done.stdout == "", "standard output is for answers"
    return done.stderr.splitlines()


@pytest.mark.parametrize("form", ["json", "auto"])
def test_without_a_terminal_each_event_is_one_json_line(form: str) -> None:
    first, second = map(json.loads, said(form))
    assert {"event": "batch.ended", "batch": "batch_1", "text": "two\nlines", "level": "info"}.items() <= first.items()
    assert first["timestamp"].endswith("Z")
    assert "ValueError: wrong" in second["exception"]
    assert "hunter2" not in second["exception"], "local variables may be secrets"


FOREIGN = """
import logging, warnings
from broker.cli import logs
logs.configure("warning")
logs.configure("info", {form!r})
logging.getLogger("botocore.retries").warning("tried %s\\ntimes", 3)
logging.getLogger("aiohttp.client").info("not.said")
warnings.warn("soon gone", DeprecationWarning, stacklevel=1)
try:
    raise ValueError("wrong")
except ValueError:
    logging.getLogger("asyncio").exception("Task was lost")
    logging.getLogger("aiohttp.server").exception("Error handling request")
"""


def test_what_libraries_log_is_one_json_line_each() -> None:
    """A request that cannot be parsed was told by aiohttp in plain text, between the JSON lines of the others."""
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN.format(form="json")], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    told = {line["logger"]: line for line in lines}
    assert len(lines) == len(told) == 4, done.stderr
    assert {"event": "tried 3\ntimes", "level": "warning"}.items() <= told["botocore.retries"].items()
    assert "soon gone" in told["py.warnings"]["event"]
    assert "ValueError: wrong" in told["asyncio"]["exception"]
    assert told["aiohttp.server"]["event"] == "Error handling request: ValueError", (
        "of a request's content nothing is told"
    )
    assert all(line["timestamp"].endswith("Z") for line in lines)
    seen = subprocess.run(
        [sys.executable, "-c", FOREIGN.format(form="console")], capture_output=True, text=True, check=True
    )
    assert "botocore.retries tried 3" in seen.stderr and not seen.stderr.startswith("{")


CRASH = """
import sys
from broker import compose
from broker.cli import main
async def serve(*_, **__):
    raise ZeroDivisionError("wrong")
compose.serve = serve
sys.argv = ["broker", "serve", "--data", {data!r}, "--json"]
main.run()
"""


def test_a_defect_that_ends_the_broker_is_one_event_too(tmp_path: Path) -> None:
    """Its trace was written over many lines, in plain text."""
    done = subprocess.run(
        [sys.executable, "-c", CRASH.format(data=str(tmp_path / "data"))], capture_output=True, text=True, check=False
    )
    event, told = done.stderr.splitlines()
    assert done.returncode == 1 and done.stdout == ""
    assert (
        json.loads(event)["event"] == "broker.crashed" and "ZeroDivisionError: wrong" in json.loads(event)["exception"]
    )
    assert told.startswith("broker: a defect of the broker's own has ended it: ZeroDivisionError")


LEFT = """
import os, sys
from pathlib import Path
from broker import compose
from broker.cli import main
from broker.compose import Ready
async def serve(*_, ready, **__):
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, sys.stdout.fileno())
    ready(Ready("http://127.0.0.1:1", "http://127.0.0.1:1", None))
compose.serve = serve
sys.argv = ["broker", "serve", "--data", {data!r}, "--json"]
main.run()
"""


def test_whoever_does_not_read_the_first_line_has_found_no_defect(tmp_path: Path) -> None:
    """`broker serve | true` ended as "a defect of the broker's own: BrokenPipeError"."""
    run = [sys.executable, "-c", LEFT.format(data=str(tmp_path / "data"))]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_console_is_for_eyes_wherever_it_goes() -> None:
    text = "\n".join(said("console"))
    assert "batch.ended" in text
    assert not text.startswith("{")
    assert "hunter2" not in text


def test_a_wrong_format_is_told_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="log_format"):
        Settings(log_format="xml")  # type: ignore[arg-type]
