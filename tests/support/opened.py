"""Opens stored objects beside the broker, from rows and the key-encryption key alone: what an operator could do by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.envelope import open_box
from workers.agent.sealing import opened

Rows = Callable[[str], list[tuple[Any, ...]]]


def opened_object(rows: Rows, kek: bytes, key: str, stored: bytes) -> bytes:
    """What the file or result under `key` holds; as it is, when its owner has no key. `rows` answers a query."""
    project, owner = key.split("/")[:2]
    if owner in ("files", "uploads"):
        owner = key.split("/")[2]
    found = rows(f"select sealed from broker_object_key where owner = '{owner}'")
    if not found:
        return stored
    whose = f"objects/{project}"
    [(data_key_id, wrapped)] = rows(f"select id, wrapped from broker_data_key where owner = '{whose}'")
    data_key = open_box(kek, bytes(wrapped), f"data key {data_key_id} of {whose}")
    root = open_box(data_key, bytes(found[0][0]), f"object key of {owner} of project {project}")
    return opened(root, key, stored)
