"""`agent.json`, the file that lies beside the agent on the machine (schemas/config.json)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workers.agent.errors import BadConfig
from workers.agent.metadata import SOURCES


@dataclass(frozen=True, slots=True)
class Config:
    """`folder` is where the file lies: the engine's working directory, and where `notice.json` is looked for.

    `dead_man_s` 0 means never. `metadata` names the cloud whose metadata service announces interruptions (metadata.py);
    `alive_file` is touched while the broker answers, for a switch outside of this process.
    """

    broker_url: str
    rental_id: str
    bootstrap_token: str
    dead_man_s: int
    failpoint: str | None
    folder: Path
    metadata: str | None = None
    alive_file: Path | None = None
    identity: Literal["certificate", "token"] = "token"
    broker_ca: str | None = None


def read_config(path: Path) -> Config:
    """Raises BadConfig, naming the file and the field."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"{path}: cannot be read ({error.strerror}); it belongs beside agent.pyz") from error
    except ValueError as error:
        raise BadConfig(f"{path}: is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise BadConfig(f"{path}: must hold one JSON object, holds {type(fields).__name__}")
    for name in ("broker_url", "rental_id", "bootstrap_token"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise BadConfig(f"{path}: field {name!r} must be a non-empty string")
    dead_man_s, failpoint = fields.get("dead_man_s"), fields.get("failpoint")
    if not isinstance(dead_man_s, int) or isinstance(dead_man_s, bool) or dead_man_s < 0:
        raise BadConfig(f"{path}: field 'dead_man_s' must be an integer ≥ 0, is {dead_man_s!r}")
    if failpoint is not None and not isinstance(failpoint, str):
        raise BadConfig(f"{path}: field 'failpoint' must be a string or null, is {failpoint!r}")
    metadata, alive_file = fields.get("metadata"), fields.get("alive_file")
    if metadata is not None and metadata not in SOURCES:
        raise BadConfig(f"{path}: field 'metadata' must be null or one of {', '.join(SOURCES)}, is {metadata!r}")
    if alive_file is not None and not isinstance(alive_file, str):
        raise BadConfig(f"{path}: field 'alive_file' must be a path or null, is {alive_file!r}")
    return Config(
        broker_url=fields["broker_url"].rstrip("/"),
        rental_id=fields["rental_id"],
        bootstrap_token=fields["bootstrap_token"],
        dead_man_s=dead_man_s,
        failpoint=failpoint,
        folder=path.resolve().parent,
        metadata=metadata,
        alive_file=Path(alive_file) if alive_file else None,
        identity="certificate" if fields.get("identity") == "certificate" else "token",
        broker_ca=fields.get("broker_ca"),
    )
