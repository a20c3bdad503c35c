"""The settings of a command that asks a broker: where it is, who asks, for which project, and how long Tab may take.

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
    """`data` is the folder whose broker is meant, unless `url` names one elsewhere. None: not set.

    `tls_ca` is a PEM of what is trusted beside what the system trusts.
    """

    data: Path
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    project: str | None = None
    tls_ca: Path | None = None
    completion_s: float = 1.0


class BadSetting(ValueError):
    """A setting is of a wrong kind; the message names it and its value."""


def load(**given: Any) -> ClientSettings:
    """What was given (not None), else the environment's, else that of `broker.toml` in the data folder.

    Raises BadSetting, and tomllib.TOMLDecodeError for a file that is not TOML.
    """
    overrides = {name: value for name, value in given.items() if value is not None}
    environment = _environment(os.environ)
    data = Path(overrides.get("data") or environment.get("data") or DEFAULT_DATA)
    found = {"data": data} | _file(data / "broker.toml") | environment | overrides
    tls_ca = {"tls_ca": Path(found["tls_ca"])} if "tls_ca" in found else {}
    return ClientSettings(**(found | {"data": Path(found["data"])} | tls_ca | _seconds(found)))


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    named = {name.lower().removeprefix(PREFIX): text for name, text in variables.items() if _is_ours(name)}
    return _chosen(named)


def _is_ours(name: str) -> bool:
    return name.lower().startswith(PREFIX)


def _seconds(found: Mapping[str, Any]) -> dict[str, float]:
    if "completion_s" not in found:
        return {}
    try:
        return {"completion_s": float(found["completion_s"])}
    except ValueError:
        raise BadSetting(f"setting completion_s = {found['completion_s']!r}: must be a number of seconds") from None


def _file(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    chosen = _chosen(tomllib.loads(file.read_text(encoding="utf-8")))
    for name, value in chosen.items():
        if not isinstance(value, int | float if name == "completion_s" else str):
            raise BadSetting(f"setting {name} = {value!r} in {file}: must be text")
    return chosen


def _chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: values[name] for name in ("data", "url", "api_key", "project", "tls_ca", "completion_s") if name in values
    }
