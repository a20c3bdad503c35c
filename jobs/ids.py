"""Ids of our own making: a prefix and a ULID. They sort by time, and within one process strictly by creation."""

from __future__ import annotations

from ulid import ULID


def batch_id() -> str:
    return f"batch_{ULID()}"


def file_id() -> str:
    """OpenAI writes file ids with a dash."""
    return f"file-{ULID()}"


def shard_id(batch_id: str, number: int) -> str:
    """The id of a batch's shard: a function of both, so that what is cut for a shard before it has a row can be found
    again after a crash."""
    return f"shard_{batch_id.removeprefix('batch_')}-{number:06}"


def upload_id() -> str:
    return f"upload_{ULID()}"


def upload_part_id() -> str:
    """As at OpenAI: `part_…`. Parts of output have names, not ids."""
    return f"part_{ULID()}"


def event_id() -> str:
    """As OpenAI's webhooks name events."""
    return f"evt_{ULID()}"
