"""Names of objects: `project/batch/…` and `project/files/…`, never a bare content hash (contract C15).

The names of parts and results are unique by what is in them, so that one name only ever means one sequence of bytes.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

Kind = Literal["files", "uploads", "parts", "results", "undone", "views"]


class ObjectName(msgspec.Struct, frozen=True):
    """What a key says of its object. `owner` is the id of the batch or upload; of a file's object it is the file's."""

    project: str
    owner: str
    kind: Kind


def name_of(key: str) -> ObjectName | None:
    """The reverse of all the functions below; None for a key that none of them gives.

    >>> name_of("acme/files/file-1"), name_of("acme/batch_1/views/output-input-00.jsonl")
    (ObjectName(project='acme', owner='file-1', kind='files'), ObjectName(project='acme', owner='batch_1', kind='views'))
    >>> name_of("somebody/else.txt") is None
    True
    """
    match key.split("/"):
        case [project, "files", file_id]:
            return ObjectName(project, file_id, "files")
        case [project, "uploads", upload_id, _]:
            return ObjectName(project, upload_id, "uploads")
        case [project, batch_id, "parts", _, _]:
            return ObjectName(project, batch_id, "parts")
        case [project, batch_id, ("results" | "undone" | "views") as kind, _]:
            return ObjectName(project, batch_id, kind)
        case _:
            return None


def input_key(project: str, file_id: str) -> str:
    """Where an uploaded file lies."""
    return f"{project}/files/{file_id}"


def upload_prefix(project: str, upload_id: str) -> str:
    """What an upload in parts has written lies below here, and nothing else does."""
    return f"{project}/uploads/{upload_id}"


def upload_part_key(project: str, upload_id: str, part_id: str) -> str:
    """Where a part of an upload lies until the upload is over."""
    return f"{upload_prefix(project, upload_id)}/{part_id}"


def composed_key(project: str, upload_id: str, order_sha256: str) -> str:
    """Where the file that an upload becomes lies; the hash names which parts in which order."""
    return f"{upload_prefix(project, upload_id)}/file-{order_sha256}"


def part_key(project: str, batch_id: str, shard_id: str, *, epoch: int, seq: int, sha256: str) -> str:
    """Where the part `seq` of a lease goes: the one key that its worker may write."""
    return f"{project}/{batch_id}/parts/{shard_id}/{epoch}-{seq}-{sha256}.jsonl.gz"


_PART_KEY = re.compile(
    r"[\w.-]{1,64}/[\w-]{1,64}/parts/[\w-]{1,80}/\d{1,19}-\d{1,19}-[0-9a-f]{64}\.jsonl\.gz", re.ASCII
)


def is_part_key(key: str) -> bool:
    """Whether this could be the name of a part at all: what a worker sends is not asked of a store unseen.

    >>> is_part_key(part_key("p", "batch_1", "shard_1", epoch=1, seq=0, sha256="0" * 64)), is_part_key("p/files/file-1/x")
    (True, False)
    """
    return _PART_KEY.fullmatch(key) is not None


def result_key(project: str, batch_id: str, kind: str, plan_sha256: str) -> str:
    """Where the finaliser writes `output` or `errors`; the plan's hash names the parts that it was composed of."""
    return f"{project}/{batch_id}/results/{kind}-{plan_sha256}.jsonl"


def undone_key(project: str, batch_id: str, shard_id: str, which_sha256: str) -> str:
    """Where the custom_ids of a shard's lines lie that the batch ended without answering; the hash names the lines."""
    return f"{project}/{batch_id}/undone/{shard_id}-{which_sha256}.json"


def view_prefix(project: str, batch_id: str) -> str:
    """Below here lie files that were composed for one request and serve until the batch has moved on."""
    return f"{project}/{batch_id}/views"


def view_key(project: str, batch_id: str, kind: str, order: str, state_sha256: str) -> str:
    """Where `output` or `errors` so far lies, in an order; the hash names the state of the batch."""
    return f"{view_prefix(project, batch_id)}/{kind}-{order}-{state_sha256}.jsonl"
