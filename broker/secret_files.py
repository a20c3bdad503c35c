"""Secrets that live in the data folder: made once, readable by the owner only, complete or absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def kept(file: Path, make: Callable[[], bytes]) -> bytes:
    """The file's bytes; `make` gives them the first time."""
    if not file.exists():
        fresh = file.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(make())
        fresh.rename(file)
    return file.read_bytes()
