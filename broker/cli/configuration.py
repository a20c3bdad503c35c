"""Settings for the commands. What is wrong with them is a usage error that names the setting, its value and the file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker import client_settings
from broker.cli.exits import USAGE, Failure
from broker.client_settings import BadSetting, ClientSettings

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from broker.settings import Settings


def load(*, config: Path | None = None, **given: Any) -> Settings:
    """All settings, with the command's own options on top; those that were not given (None) leave the rest as it is.

    Raises Failure (usage) that names each setting that is wrong.
    """
    # Imported here: building all of them takes a quarter of a second, which only a broker's own commands should pay.
    from pydantic import ValidationError  # noqa: PLC0415

    from broker import settings  # noqa: PLC0415

    if config and not config.is_file():
        raise Failure(f"--config {config}: no such file", USAGE)
    try:
        return settings.load(config, **_overrides(given))
    except ValidationError as wrong:
        raise Failure(_described(wrong), USAGE) from wrong
    except tomllib.TOMLDecodeError as wrong:
        raise Failure(f"{config or 'broker.toml in the data folder'}: not TOML: {wrong}", USAGE) from wrong


def load_client(**given: Any) -> ClientSettings:
    """Which broker a command means, by its options and settings. Raises Failure (usage)."""
    try:
        return client_settings.load(**_overrides(given))
    except BadSetting as wrong:
        raise Failure(str(wrong), USAGE) from wrong
    except tomllib.TOMLDecodeError as wrong:
        raise Failure(f"broker.toml in the data folder: not TOML: {wrong}", USAGE) from wrong


def _overrides(given: dict[str, Any]) -> dict[str, Any]:
    overrides = {name: value for name, value in given.items() if value is not None}
    if "data" in overrides:
        overrides["data"] = Path(overrides["data"]).expanduser().resolve()
    return overrides


def _described(wrong: ValidationError) -> str:
    lines = []
    for error in wrong.errors(include_url=False):
        name = ".".join(str(part) for part in error["loc"])
        lines.append(f"setting {name or '(whole)'}{_shown(error)}: {error['msg']}")
    return "\n".join(lines)


def _shown(error: ErrorDetails) -> str:
    """The value that is wrong, unless it is or holds a secret: one that is mistyped is a secret nevertheless.

    An unknown setting is known by its name: its value may be a secret under a name that was mistyped.
    """
    from broker.settings import SECRET_SETTINGS  # noqa: PLC0415 - as in `load`

    if error["type"] == "extra_forbidden" or not isinstance(error["input"], str | int | float | bool):
        return ""
    return "" if SECRET_SETTINGS.intersection(map(str, error["loc"])) else f" = {error['input']!r}"
