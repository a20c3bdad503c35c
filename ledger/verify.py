"""Verifying an export: needs the export and the public key, no database, no network, nothing of what made it.

Every file is hashed against the signed manifest, every leaf against the chain, every checkpoint's signature and root are
recomputed (so that each earlier log is a prefix of every later one), and the books are read: numbers without gaps, zero in each
unit, holds opened once and resolved at most once.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from ledger.accounts import is_memo
from ledger.checkpoint import LINES, BadNote, Checkpoint, PublicKey, opened, read_checkpoint
from ledger.event import Event
from ledger.merkle import Frontier, leaf_hash
from ledger.positions import RESOLUTIONS
from ledger.seal import FIRST, STREAMS, chained
from ledger.sealed_export import CHECKPOINTS, FOLDER, MANIFEST, SIGNATURE, SUMS

_CHUNK = 1 << 20
# A file that was cut or filled with other things would give a finding a line: the first ones say what is wrong.
MOST = 50


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something in the export is not what was signed: `where` names file, line, entry or checkpoint."""

    where: str
    message: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, and what is wrong with it. At most MOST problems are listed of each file.

    `outside` is how many checkpoints that were kept elsewhere were held against the streams.
    """

    leaves: dict[str, int]
    postings: int
    checkpoints: int
    files: int
    problems: tuple[Problem, ...]
    outside: int = 0


class _Signed(msgspec.Struct, frozen=True):
    """A checkpoint and where it stands: in the export, or in a file that was kept elsewhere."""

    where: str
    checkpoint: Checkpoint
    is_outside: bool


class LeafOfBooks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A leaf of the stream `books` (ledger.book.leaf_of)."""

    entry_id: str
    event: Event
    recorded_at_us: int
    seq: int


def verify(folder: Path, keys: Sequence[PublicKey], outside: Path | None = None) -> Verdict:
    """Look at everything; what is wrong is in the verdict. Nothing in an export can make this raise but an OSError.

    `outside` is a file of checkpoints that was kept where the database's owner does not write: each must be signed and hold
    for its stream. The export's own notes say what the database says; whoever rewrote both is found by this file alone.
    """
    problems: list[Problem] = []
    sealed = folder / FOLDER
    counts: dict[str, int] = {}
    books = _Books()
    # an export for finance has no streams; one that lost them has them in its manifest still
    has_streams = sealed.exists() or not (folder / MANIFEST).is_file()
    inside, broken = (
        _read_checkpoints(sealed / CHECKPOINTS, f"{FOLDER}/{CHECKPOINTS}", keys) if has_streams else ([], [])
    )
    problems += broken
    kept: list[_Signed] = []
    if outside is not None:
        kept, broken = _read_checkpoints(outside, outside.name, keys, is_outside=True)
        problems += broken
        if not kept and not broken:
            problems.append(Problem(where=outside.name, message="holds no checkpoint"))
        if not has_streams:
            problems.append(
                Problem(where=FOLDER, message="is missing: there is nothing to hold the checkpoints against")
            )
    for stream in STREAMS if has_streams else ():
        mine: dict[int, list[_Signed]] = defaultdict(list)
        for each in (*inside, *kept):
            if _stream_of(each) == stream:
                mine[each.checkpoint.size].append(each)
        counts[stream], found = _verify_stream(sealed, stream, mine, books if stream == "books" else None)
        problems += found
    files, found = _verify_files(folder, keys)
    return Verdict(
        leaves=counts,
        postings=books.postings,
        checkpoints=len(inside),
        files=files,
        problems=tuple(problems + found),
        outside=len(kept),
    )


def _stream_of(signed: _Signed) -> str:
    return signed.checkpoint.origin.rpartition("/")[2]


def _read_checkpoints(
    file: Path, name: str, keys: Sequence[PublicKey], *, is_outside: bool = False
) -> tuple[list[_Signed], list[Problem]]:
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except FileNotFoundError:
        return [], [Problem(where=name, message="is missing: nothing here was signed")]
    except UnicodeDecodeError as damage:
        return [], [Problem(where=name, message=f"is no UTF-8 at byte {damage.start}")]
    found, problems = [], []
    if lines.pop() or len(lines) % LINES:
        problems.append(Problem(where=name, message=f"is no whole number of notes of {LINES} lines"))
    for at in range(0, len(lines), LINES):
        where = f"{name} line {at + 1} (checkpoint {at // LINES + 1})"
        try:
            signed = _Signed(where, read_checkpoint("\n".join(lines[at : at + LINES]) + "\n", keys), is_outside)
        except BadNote as bad:
            problems.append(Problem(where=where, message=str(bad)))
            continue
        found.append(signed)
        if _stream_of(signed) not in STREAMS:
            problems.append(Problem(where=where, message=f"is of {signed.checkpoint.origin}: there is no such stream"))
    return found, problems[:MOST]


def _verify_stream(
    sealed: Path, stream: str, checkpoints: Mapping[int, Sequence[_Signed]], books: _Books | None
) -> tuple[int, list[Problem]]:
    problems: list[Problem] = []
    bodies, chain = sealed / f"{stream}.jsonl", sealed / f"{stream}.chain"
    if not bodies.is_file() or not chain.is_file():
        return 0, [Problem(where=f"{FOLDER}/{stream}.*", message="the leaves or their chain are missing")]
    frontier, prev, seq = Frontier(), FIRST, 0
    with bodies.open("rb") as leaves, chain.open("rb") as hashes:
        for leaf, told in _paired(leaves, hashes):
            seq += 1
            where = f"{FOLDER}/{stream}.jsonl line {seq}"
            if leaf is None or told is None:
                other = "chain" if told is None else "jsonl"
                problems.append(
                    Problem(where=where, message=f"{stream}.{other} has fewer lines: something was cut or split")
                )
                break
            hashed = leaf_hash(leaf)
            frontier.add(hashed)
            listed = told.decode("ascii", "replace")
            if chained(prev, hashed) != listed:
                problems.append(Problem(where=where, message=_broken(prev, listed, seq, stream)))
            prev = listed if _is_hash(listed) else chained(prev, hashed)
            if books is not None:
                problems += books.read(leaf, seq, where)
            if signed := checkpoints.get(seq):
                problems += _unlike(signed, frontier.root().hex(), listed)
            if len(problems) > MOST:
                break
    if len(problems) <= MOST:
        problems += _beyond(checkpoints, seq)
    newest = max((size for size, signed in checkpoints.items() if not all(e.is_outside for e in signed)), default=0)
    if newest != seq and not problems:
        message = f"{seq} leaves, the newest checkpoint is of {newest}: the rest is signed by nobody, or was cut off"
        problems.append(Problem(where=f"{FOLDER}/{stream}.jsonl", message=message))
    return seq, problems


def _unlike(signed: Sequence[_Signed], root: str, chain: str) -> Iterator[Problem]:
    """Why: of two checkpoints of one size at most one can be of these leaves."""
    for each in signed:
        if (each.checkpoint.root, each.checkpoint.chain) != (root, chain):
            yield Problem(where=_named(each), message="its root is not that of the leaves")


def _beyond(checkpoints: Mapping[int, Sequence[_Signed]], seq: int) -> Iterator[Problem]:
    """Checkpoints that were kept elsewhere of more leaves than there are, or of none."""
    for size in sorted(checkpoints):
        for each in checkpoints[size] if size > seq or size == 0 else ():
            if each.is_outside:
                message = f"there are {seq} leaves: the rest was cut off, or the export is older than this checkpoint"
                yield Problem(where=_named(each), message=message)


def _named(signed: _Signed) -> str:
    name = f"checkpoint {signed.checkpoint.origin} of size {signed.checkpoint.size}"
    return f"{signed.where}, {name}" if signed.is_outside else name


def _broken(prev: str, listed: str, seq: int, stream: str) -> str:
    if not _is_hash(listed):
        return f"line {seq} of {stream}.chain is no hash: it was changed"
    return (
        f"leaf {seq}, its chain hash or the one before it was changed: {listed[:12]}… does not follow from {prev[:12]}…"
    )


def _is_hash(text: str) -> bool:
    return len(text) == 64 and all(each in "0123456789abcdef" for each in text)


def _paired(leaves: Iterator[bytes], hashes: Iterator[bytes]) -> Iterator[tuple[bytes | None, bytes | None]]:
    """Lines without their break, side by side; None where one file has ended. A last line without a break is another line."""
    while True:
        leaf, told = next(leaves, None), next(hashes, None)
        if leaf is None and told is None:
            return
        yield _whole(leaf), _whole(told)


def _whole(line: bytes | None) -> bytes | None:
    if line is None:
        return None
    return line[:-1] if line.endswith(b"\n") else line + b"(no line break)"


class _Books:
    """The books, followed leaf by leaf."""

    def __init__(self) -> None:
        self.postings = 0
        self.opened: set[str] = set()
        self.resolved: set[str] = set()
        self._decoder = msgspec.json.Decoder(LeafOfBooks)

    def read(self, leaf: bytes, seq: int, where: str) -> list[Problem]:
        try:
            entry = self._decoder.decode(leaf)
        except (msgspec.DecodeError, UnicodeDecodeError) as damage:
            return [Problem(where=where, message=f"entry {seq} cannot be read: {damage}")]
        return [Problem(where=where, message=f"entry {seq}: {each}") for each in self._wrong(entry, seq)]

    def _wrong(self, entry: LeafOfBooks, seq: int) -> Iterator[str]:
        event = entry.event
        if entry.seq != seq:
            yield f"its number is {entry.seq}; an entry is missing or in the wrong place"
        sums: dict[tuple[str, bool], int] = defaultdict(int)
        for line in event.lines:
            sums[line.unit, is_memo(line.account)] += line.nano
        self.postings += len(event.lines)
        for (unit, _), nano in sums.items():
            if nano:
                yield f"debits exceed credits by {nano} nano-{unit}"
        if event.hold is None:
            return
        if event.kind == "hold.open":
            if event.hold in self.opened:
                yield f"hold {event.hold} is opened a second time"
            self.opened.add(event.hold)
        elif event.hold not in self.opened or event.hold in self.resolved:
            yield f"hold {event.hold} was never opened, or was resolved before"
        if event.kind in RESOLUTIONS:
            self.resolved.add(event.hold)


def _verify_files(folder: Path, keys: Sequence[PublicKey]) -> tuple[int, list[Problem]]:
    """Every file that is there is listed with its sha256, and the list is signed."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return 0, [Problem(where=MANIFEST, message="is missing: nothing says which files belong to the export")]
    raw = manifest.read_bytes()
    problems = _verify_signature(folder, raw, keys)
    try:
        listed = {str(each["name"]): str(each["sha256"]) for each in msgspec.json.decode(raw)["files"]}
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as damage:
        return 0, [*problems, Problem(where=MANIFEST, message=f"cannot be read: {damage!r}")]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(listed.keys() | there - {MANIFEST, SIGNATURE, SUMS}):
        if name not in there:
            problems.append(Problem(where=name, message="is in the manifest and not here"))
        elif name not in listed:
            problems.append(Problem(where=name, message="is here and not in the manifest"))
        elif _sha256(folder / name) != listed[name]:
            problems.append(Problem(where=name, message=f"was changed: its sha256 is not {listed[name][:12]}…"))
    return len(listed), problems + _verify_sums(folder, listed, raw)


def _verify_signature(folder: Path, manifest: bytes, keys: Sequence[PublicKey]) -> list[Problem]:
    try:
        text = opened((folder / SIGNATURE).read_bytes().decode("utf-8"), keys)
    except FileNotFoundError:
        return [Problem(where=SIGNATURE, message="is missing: the manifest is signed by nobody")]
    except UnicodeDecodeError as damage:
        return [Problem(where=SIGNATURE, message=f"is no UTF-8 at byte {damage.start}")]
    except BadNote as bad:
        return [Problem(where=SIGNATURE, message=str(bad))]
    if text.split("\n")[1:] != [f"sha256 {hashlib.sha256(manifest).hexdigest()}", ""]:
        return [Problem(where=MANIFEST, message="is not what was signed: it was changed")]
    return []


def _verify_sums(folder: Path, listed: dict[str, str], manifest: bytes) -> list[Problem]:
    """The list for `sha256sum -c`, where there is one, says the same as the manifest."""
    file = folder / SUMS
    if not file.is_file():
        return []
    lines = [f"{digest}  {name}" for name, digest in listed.items()]
    lines.append(f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}")
    if sorted(file.read_bytes().split(b"\n")) != sorted([b"", *(line.encode() for line in lines)]):
        return [Problem(where=SUMS, message="differs from the manifest: it was changed")]
    return []


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened_file:
        while chunk := opened_file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
