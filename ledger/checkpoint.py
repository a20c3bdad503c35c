"""Checkpoints: a stream's size and Merkle root, signed, for keeping where the database's owner cannot reach.

The text is a C2SP tlog-checkpoint (https://c2sp.org/tlog-checkpoint) with one extension line: origin, size, root in base64,
`chain` and the hash of the newest leaf, an empty line, and one signature line of a signed note. Keys are written as that
format's verifier keys, `name+hash+base64(0x01 ‖ Ed25519 public key)`; PEM is read, too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from ledger.errors import LedgerError

_ED25519 = b"\x01"
_DASH = "— "
LINES = 6  # of a note


class BadNote(LedgerError):
    """A checkpoint cannot be read, or is not signed by a key that is trusted."""

    code = "bad_note"


class BadKey(LedgerError):
    """A public key cannot be read."""

    code = "bad_key"


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A log's state as somebody signed it: `size` leaves with this Merkle root and this newest chain hash (both hex)."""

    origin: str
    size: int
    root: str
    chain: str


class PublicKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key to check signatures with. `name` None (out of a PEM) is any signer's."""

    name: str | None
    raw: bytes


def sign_checkpoint(key: Ed25519PrivateKey, name: str, checkpoint: Checkpoint) -> str:
    """The signed note. The same checkpoint gives the same note."""
    root = base64.b64encode(bytes.fromhex(checkpoint.root)).decode()
    return signed(key, name, f"{checkpoint.origin}\n{checkpoint.size}\n{root}\nchain {checkpoint.chain}\n")


def read_checkpoint(note: str, keys: Sequence[PublicKey]) -> Checkpoint:
    """What the note says, its signature checked. Raises BadNote."""
    return _parsed(opened(note, keys))


def claimed(note: str) -> Checkpoint:
    """What the note says, whoever signed it: for one that nobody else could have written. Raises BadNote."""
    return _parsed(note.rpartition("\n\n")[0] + "\n")


def split_notes(raw: bytes) -> tuple[list[str], bytes]:
    """The whole notes of a file, and what is left at its end: of one that was not written to its end, or of something else."""
    lines = raw.split(b"\n")
    whole = (len(lines) - 1) // LINES * LINES  # the last has no line break
    told = [
        "\n".join(line.decode("utf-8", "replace") for line in lines[at : at + LINES]) for at in range(0, whole, LINES)
    ]
    return [f"{note}\n" for note in told], b"\n".join(lines[whole:])


def _parsed(text: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) != 5 or not lines[3].startswith("chain ") or not lines[1].isdecimal():
        raise BadNote("a checkpoint is origin, size, root and chain, a line each")
    if lines[1] != str(int(lines[1])):
        raise BadNote(f"size {lines[1]!r} is not written as a number is")
    return Checkpoint(origin=lines[0], size=int(lines[1]), root=_strict(lines[2]).hex(), chain=lines[3][6:])


def signed(key: Ed25519PrivateKey, name: str, text: str) -> str:
    """A signed note: the text, an empty line, and who signed it. The text ends with a line break."""
    raw = public_bytes(key)
    line = base64.b64encode(key_id(name, raw) + key.sign(text.encode())).decode()
    return f"{text}\n{_DASH}{name} {line}\n"


def opened(note: str, keys: Sequence[PublicKey]) -> str:
    """The text of a signed note. Raises BadNote unless a key that is trusted signed it."""
    text, gap, signature = note.rpartition("\n\n")
    name, space, encoded = signature.removeprefix(_DASH).removesuffix("\n").partition(" ")
    if not gap or not space or not signature.startswith(_DASH) or signature.count("\n") != 1:
        raise BadNote("no signature line (— name base64) after an empty line")
    text, blob = f"{text}\n", _strict(encoded)
    for each in keys:
        if each.name in (None, name) and blob[:4] == key_id(name, each.raw):
            try:
                Ed25519PublicKey.from_public_bytes(each.raw).verify(blob[4:], text.encode())
            except InvalidSignature:
                raise BadNote(f"the signature of {name} does not fit its text: one of them was changed") from None
            return text
    raise BadNote(f"it is signed by {name} with a key that was not given")


def verifier_key(key: Ed25519PrivateKey, name: str) -> str:
    """The public key as a line of text."""
    raw = public_bytes(key)
    return f"{name}+{key_id(name, raw).hex()}+{base64.b64encode(_ED25519 + raw).decode()}"


def read_keys(text: str) -> list[PublicKey]:
    """Verifier keys, one a line (empty lines and `#` are skipped), or one PEM. Raises BadKey."""
    if "-----BEGIN" in text:
        try:
            loaded = load_pem_public_key(text.encode())
        except ValueError as problem:
            raise BadKey(f"the PEM cannot be read: {problem}") from problem
        if not isinstance(loaded, Ed25519PublicKey):
            raise BadKey("the PEM is of another kind of key; Ed25519 is meant")
        return [PublicKey(name=None, raw=loaded.public_bytes(Encoding.Raw, PublicFormat.Raw))]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise BadKey("the file holds no key; `broker ledger key` prints one")
    return [_read_key(line) for line in lines]


def key_id(name: str, raw: bytes) -> bytes:
    """The four bytes by which a note says which key signed it."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + raw).digest()[:4]


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _read_key(line: str) -> PublicKey:
    try:
        # from the right: base64 has plus signs, names have none
        name, hashed, encoded = line.split("+", 2)
        raw = _strict(encoded)
    except (ValueError, BadNote) as problem:
        raise BadKey(f"{line[:40]!r} is not a verifier key (name+hash+base64)") from problem
    if raw[:1] != _ED25519 or len(raw) != 33 or key_id(name, raw[1:]).hex() != hashed:
        raise BadKey(f"{line[:40]!r}: hash and key do not fit, or it is no Ed25519 key")
    return PublicKey(name=name, raw=raw[1:])


def _strict(text: str) -> bytes:
    """Base64 in its one right form: bits that no decoder looks at must not be free to flip."""
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise BadNote(f"{text[:20]!r} is not base64") from problem
    if base64.b64encode(found).decode() != text:
        raise BadNote(f"{text[:20]!r} is not base64 as it is written")
    return found
