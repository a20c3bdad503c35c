"""The worker wire's JSON Schemas (contract C11): read once, compiled once, each request checked against its own.

A commit has a row for each line of its part. Those rows are looked at by msgspec first, in a hundredth of the time; only
when it objects does the schema see them, to say what is wrong and where.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Annotated, Any, Literal

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from broker.api.problems import bad_request
from jobs.types import Commit, LineUsage

_SUFFIX = ".json"
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# What a column of 32 bits holds, or is added up in one of 64: an epoch, a seq, a line's tokens, a part's milliseconds (24
# days). One number near 2^63 in a sum that all workers share would let no commit of anybody count any more.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Metered(LineUsage, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A row of `usage` as the wire has it: nothing may be left out, nothing may be negative."""

    idx: _Count
    status: Literal["completed", "failed"]
    prompt_tokens: _Count
    completion_tokens: _Count
    cached_tokens: _Count
    attempts: _Count
    estimated: bool
    reasoning_tokens: _Count = 0  # agents of before tell none


# `usage` of commit.request, as its schema has it.
_Usage = list[Metered]


class Delivery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`delivery.request`, as its schema has it."""

    epoch: _Count
    nonce: str
    seq: _Count
    size: _Number
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    lines: tuple[tuple[_Number, _Number], ...]
    usage: tuple[Metered, ...]
    counters: dict[str, _Count]
    sealed: bool = False

    def commit(self, shard_id: str, key: str) -> Commit:
        """The commit that it is, of the object under `key`."""
        return Commit(
            shard_id=shard_id, epoch=self.epoch, nonce=self.nonce, seq=self.seq, key=key, size=self.size,
            sha256=self.sha256, lines=self.lines, usage=self.usage, counters=self.counters,
        )  # fmt: skip


DELIVERIES = msgspec.json.Decoder(Delivery)


def _is_integer(_checker: object, value: object) -> bool:
    """JSON Schema calls 1.0 an integer; the database and the signatures do not."""
    return isinstance(value, int) and not isinstance(value, bool)


_TYPES = Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer)
_Strict: type[Draft202012Validator] = extend(Draft202012Validator, type_checker=_TYPES)  # type: ignore[no-untyped-call]


class WireSchemas:
    """All schemas beside the agent, by name: `hello.request`, `commit.response`, …"""

    def __init__(self) -> None:
        folder = files("workers.agent") / "schemas"
        self.documents: dict[str, dict[str, Any]] = {
            file.name.removesuffix(_SUFFIX): json.loads(file.read_text())
            for file in folder.iterdir()
            if file.name.endswith(_SUFFIX)
        }
        self._validators = {name: _Strict(document) for name, document in self.documents.items()}

    def check(self, name: str, document: Any) -> None:
        """Raises 400 with the path in the document where it first leaves the schema."""
        if name == "commit.request" and has_plain_usage(document):
            document = {**document, "usage": []}
        error = next(
            iter(sorted(self._validators[name].iter_errors(document), key=lambda found: list(map(str, found.path)))),
            None,
        )
        if error is not None:
            raise bad_request("wire_violation", f"{name} at {error.json_path}: {error.message[:300]}", error.json_path)


def has_plain_usage(commit: Any) -> bool:
    """Whether each row of its usage is what the schema wants.

    >>> has_plain_usage({"usage": [[0, "completed", 7, 5, 0, 1, False]]})
    True
    >>> has_plain_usage({"usage": [[0, "completed", 7, 5.0, 0, 1, False]]}), has_plain_usage({"usage": "many"})
    (False, False)
    """
    if not isinstance(commit, dict):
        return False
    try:
        msgspec.convert(commit.get("usage"), _Usage)
    except msgspec.ValidationError:
        return False
    return True
