"""Ids of our own making: a prefix and a ULID. They sort by time, and within one process strictly by creation."""

from __future__ import annotations

from ulid import ULID


def batch_id() -> str:
    return f"batch_{ULID()}"


def file_id() -> str:
    """OpenAI writes file ids with a dash."""
    return f"file-{ULID()}"


def shard_id() -> str:
    return f"shard_{ULID()}"


def event_id() -> str:
    return f"event_{ULID()}"
