"""The demonstration's folder: made anew for each run; nothing is deleted that a demonstration did not make."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from broker.cli.exits import USAGE, Failure
from broker.owner import owner

MARK = ".broker-demo"
MADE = ("data", "prompts.jsonl", "output.jsonl", "errors.jsonl", "ledger.csv", "broker.log")

# Short intervals, so that a run of a minute or two shows what otherwise takes hours: leases of seconds, parts of eight
# lines, machines given back as soon as they idle.
SETTINGS = """\
[jobs]
shard_lines = 32
part_lines = 8
part_seconds = 3.0
lease_ttl_s = 6.0

[control]
poll_s = 5.0
plan_s = 1.0
reconcile_s = 0.5
accrue_s = 1.0
finalise_s = 0.5
heartbeat_s = 1.0
idle_release_s = 2.0
worker_silence_s = 10.0
cancel_grace_s = 5.0
drain_s = 20.0
dead_man_s = 60
"""

# One thread: llama.cpp's threads spin while they wait, and as many as there are cores stand in each other's way.
MODEL = """
[models."{model}"]
engine = "llamacpp"
weights = {weights}
precision = "q4_1"
context = 512
parallel = 8
args = ["--threads", "1"]
load_s = 3
tokens_per_s = {{ cpu = [200.0, 40.0] }}
"""


@dataclass(frozen=True)
class DemoFolder:
    """Paths of one run. `data` is the broker's own folder."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def prompts(self) -> Path:
        return self.root / "prompts.jsonl"

    @property
    def output(self) -> Path:
        return self.root / "output.jsonl"

    @property
    def errors(self) -> Path:
        return self.root / "errors.jsonl"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.csv"

    @property
    def log(self) -> Path:
        return self.root / "broker.log"


def prepare(root: Path, model: str, weights: Path) -> DemoFolder:
    """A fresh demonstration folder at `root`, set up to serve `model` from `weights`.

    Raises Failure when something else lies there, or a run is under way.
    """
    folder = DemoFolder(root.expanduser().resolve())
    live = owner(folder.data)
    if live:
        raise Failure(f"{folder.root}: another demonstration is under way here (pid {live.pid}); name another folder")
    if not _is_ours_or_free(folder.root):
        raise Failure(f"{folder.root}: not empty, and not made by a demonstration; name another folder", USAGE)
    folder.root.mkdir(parents=True, exist_ok=True)
    (folder.root / MARK).touch()
    for name in MADE:
        _remove(folder.root / name)
    folder.data.mkdir()
    served = MODEL.format(model=model, weights=json.dumps(str(weights)))  # a JSON string is a TOML string
    (folder.data / "broker.toml").write_text(SETTINGS + served, encoding="utf-8")
    folder.prompts.write_bytes((files("broker.demo") / "prompts.jsonl").read_bytes())
    return folder


def _is_ours_or_free(root: Path) -> bool:
    if not root.exists() or (root / MARK).is_file():
        return True
    return root.is_dir() and not any(root.iterdir())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
