"""The values that go in and out of the jobs room. Times are integer microseconds UTC.

Line numbers (`idx`) are 0-based positions of request lines in the input file; people are shown `idx + 1`.
Ranges are half-open pairs `(start, stop)`, sorted, not touching: the wire form of a set of line numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

BatchStatus = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
]
TERMINAL: frozenset[str] = frozenset({"completed", "failed", "expired", "cancelled"})
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
Ranges = tuple[tuple[int, int], ...]
LineStatus = Literal["completed", "failed"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """A project's limits; every error that comes from one names it (contract C12)."""

    max_lines: int = 50_000
    max_file_bytes: int = 200 * 1024 * 1024
    max_line_bytes: int = 1024 * 1024
    max_custom_id_chars: int = 512
    max_depth: int = 64
    max_output_tokens: int = 131_072
    max_n: int = 16
    max_findings: int = 1_000
    max_invalid: int = 100_000
    max_tags: int = 8
    max_tag_values: int = 10_000


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something wrong with the input: where (`line` is 1-based, None for the whole file), what, and how to mend it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class ShardSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A run of consecutive request lines: `lines` of them from `first_idx`, in bytes [start, stop) of the input object."""

    index: int
    first_idx: int
    lines: int
    start: int
    stop: int
    sha256: str
    input_tokens: int
    output_tokens: int
    prefix: str | None = None


class InvalidLine(msgspec.Struct, frozen=True, array_like=True):
    """A line that is answered at intake with what is wrong with it (`skip_invalid`). `custom_id` if it could be read."""

    idx: int
    custom_id: str | None
    code: str
    message: str


class Repeatable(msgspec.Struct, frozen=True, kw_only=True):
    """The lines whose answers may be reused (temperature 0), in the order of the file: `idx[n]` has the 16 bytes
    `digests[16 * n : 16 * n + 16]`, a hash of endpoint and body. `idx` is an `array("L")`: a million lines cost 24 MB.
    """

    idx: Sequence[int]
    digests: bytes

    def digest(self, position: int) -> bytes:
        return self.digests[16 * position : 16 * position + 16]


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """The result of streaming over an input file once. With findings, `shards` is empty.

    With `skip_invalid` bad lines are in `invalid` and not in `findings` (which then hold what spoils the whole file);
    `lines` and `shards` count them too, so that positions stay those of the file. `repeatable` is filled on request.
    `tags` are the lines' own tags: (key, value) → ranges of lines.
    `input_tokens` is estimated (characters / 4 when no tokenizer is at hand) and `output_tokens` is the sum of each
    line's max_tokens, or the default where it names none.
    """

    findings: tuple[Finding, ...]
    findings_total: int
    model: str | None
    endpoint: str | None
    lines: int
    input_tokens: int
    output_tokens: int
    shards: tuple[ShardSpec, ...]
    invalid: tuple[InvalidLine, ...] = ()
    repeatable: Repeatable | None = None
    tags: dict[tuple[str, str], Ranges] = {}


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Lines by outcome. At the end completed + failed + expired + cancelled = total."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A placement's claim on a shard. `epoch` grows by one with each claim; `nonce` binds the answer to its receiver.

    `expires_us` is on the database's clock; a worker is only told `ttl_s`. `suspects` maps a line that was in flight
    when an engine or a worker died to the attempts already spent on it.
    """

    shard_id: str
    batch_id: str
    project: str
    epoch: int
    nonce: str
    ttl_s: float
    expires_us: int
    endpoint: str
    model: str
    input_key: str
    start: int
    stop: int
    first_idx: int
    lines: int
    done: Ranges
    suspects: dict[int, int]


class LineUsage(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One finished line as metered by the worker. `estimated` when the engine gave no usage. Cached tokens are part of the
    prompt's, reasoning tokens of the completion's.

    Numbers and a word hold no cycles (`gc`): a commit has hundreds of these, and each thousand would set the collector to work.
    """

    idx: int
    status: LineStatus
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    attempts: int
    estimated: bool = False
    reasoning_tokens: int = 0


class Reserved(msgspec.Struct, frozen=True, kw_only=True):
    """Lines of a batch that the broker answers itself. `follows`: those that wait for an earlier line (line → line).

    `invalid` are those of `lines` that are no requests, and for which the shards' tokens count nothing.
    """

    lines: Ranges = ()
    follows: dict[int, int] = {}
    invalid: Ranges = ()


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's claim that part `seq` of its lease is safely stored under `key` and holds exactly `lines`."""

    shard_id: str
    epoch: int
    nonce: str
    seq: int
    key: str
    size: int
    sha256: str
    lines: Ranges
    usage: tuple[LineUsage, ...]
    counters: dict[str, int] = {}


class CommitAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a commit. Every outcome is final for this (shard, epoch, seq).

    committed             counted; `lease_lost` False: go on
    committed_superseded  counted, because it is disjoint with all that is done, but the lease belongs to another now
    replayed              the same commit again; `outcome_before` is the stored answer
    rejected_overlap      some lines are already done; `done` is what is
    rejected_conflict     this (epoch, seq) holds a part with another sha256
    rejected_revoked      the placement was revoked
    rejected_terminal     the batch takes no more answers
    rejected_invalid      lines outside the shard, usage that does not match the lines, or an unknown epoch or nonce
    """

    outcome: Literal[
        "committed",
        "committed_superseded",
        "replayed",
        "rejected_overlap",
        "rejected_conflict",
        "rejected_revoked",
        "rejected_terminal",
        "rejected_invalid",
    ]
    done: Ranges
    shard_done: bool
    lease_lost: bool
    outcome_before: str | None = None
    message: str | None = None
