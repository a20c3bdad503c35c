"""The four settings of a command that asks a broker: where it is, who asks, for which project.

They are settings like the others (contract C10: given < environment < TOML < default), read without the others: a command
that asks a broker need not wait for the whole of `broker/settings.py` to be built, nor stumble over what only `serve` uses.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

PREFIX = "broker_"
DEFAULT_DATA = Path(platformdirs.user_data_dir("compute-broker"))


@dataclass(frozen=True)
class ClientSettings:
    """`data` is the folder whose broker is meant, unless `url` names one elsewhere. None: not set."""

    data: Path
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    project: str | None = None


class NotText(ValueError):
    """A setting in broker.toml that must be text is not; the message names it and its value."""


def load(**given: Any) -> ClientSettings:
    """What was given (not None), else the environment's, else that of `broker.toml` in the data folder.

    Raises NotText, and tomllib.TOMLDecodeError for a file that is not TOML.
    """
    overrides = {name: value for name, value in given.items() if value is not None}
    environment = _environment(os.environ)
    data = Path(overrides.get("data") or environment.get("data") or DEFAULT_DATA)
    found = {"data": data} | _file(data / "broker.toml") | environment | overrides
    return ClientSettings(**(found | {"data": Path(found["data"])}))


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    named = {name.lower().removeprefix(PREFIX): text for name, text in variables.items() if _is_ours(name)}
    return _chosen(named)


def _is_ours(name: str) -> bool:
    return name.lower().startswith(PREFIX)


def _file(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    chosen = _chosen(tomllib.loads(file.read_text(encoding="utf-8")))
    for name, value in chosen.items():
        if not isinstance(value, str):
            raise NotText(f"setting {name} = {value!r} in {file}: must be text")
    return chosen


def _chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in ("data", "url", "api_key", "project") if name in values}
