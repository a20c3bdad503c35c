"""Secrets that live in the data folder: made once, readable by the owner only, complete or absent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def kept(file: Path, make: Callable[[], bytes]) -> bytes:
    """The file's bytes; `make` gives them the first time. They are on the disk before anybody uses them: what is wrapped by a
    key that a power cut took away is lost."""
    if not file.exists():
        fresh = file.with_suffix(".new")
        fresh.touch(mode=0o600)
        with fresh.open("wb") as opened:
            opened.write(make())
            opened.flush()
            os.fsync(opened.fileno())
        fresh.rename(file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return file.read_bytes()
