"""An export is verified by itself and the public key alone, and any flipped bit is named."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.database import Database
from ledger.checkpoint import BadKey, Checkpoint, read_checkpoint, read_keys, sign_checkpoint, split_notes, verifier_key
from ledger.merkle import Frontier, leaf_hash
from ledger.seal import FIRST, chained
from ledger.sealed_export import sign_manifest, write_manifest
from ledger.verify import Verdict, verify
from tests.support.sealed_books import SIGNER, export

KEYS = read_keys(verifier_key(SIGNER.key, SIGNER.name))


def wheres(verdict: Verdict) -> list[str]:
    return [problem.where for problem in verdict.problems]


def files_of(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if each.is_file())


@pytest.fixture
async def sealed(books: Database, tmp_path: Path) -> Path:
    await export(books, tmp_path)
    return tmp_path


async def test_an_untouched_export_has_no_problems_and_everything_was_looked_at(sealed: Path) -> None:
    found = verify(sealed, KEYS)
    assert found.problems == ()
    assert (found.leaves, found.checkpoints, found.files) == ({"books": 6, "decisions": 2}, 3, 5)
    assert found.postings == 22
    pem = SIGNER.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    assert verify(sealed, read_keys(pem)).problems == ()


async def test_any_flipped_bit_of_any_file_is_found_and_named(sealed: Path) -> None:
    """40 places in each file, by a fixed seed; every bit would take a minute."""
    chance = random.Random(7)
    for file in files_of(sealed):
        whole, name = file.read_bytes(), file.relative_to(sealed).as_posix()
        for _ in range(40):
            at, bit = chance.randrange(len(whole)), chance.randrange(8)
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            file.write_bytes(bytes(changed))
            found = wheres(verify(sealed, KEYS))
            stem = name.rpartition(".")[0]
            assert any(name in where or stem in where for where in found), f"{name} byte {at} bit {bit}: {found}"
        file.write_bytes(whole)


async def test_a_flipped_bit_in_an_entry_names_the_entry(sealed: Path) -> None:
    file = sealed / "sealed" / "books.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b'"nano":10000', b'"nano":10001')
    file.write_bytes(b"\n".join(lines))
    problems = [f"{each.where}: {each.message}" for each in verify(sealed, KEYS).problems]
    assert any(each.startswith("sealed/books.jsonl line 3: leaf 3") for each in problems)
    assert any("debits exceed credits by" in each for each in problems)


async def test_books_rewritten_from_an_entry_on_do_not_fit_what_was_signed(sealed: Path) -> None:
    """Whoever owns the database can compute every hash anew; the signed root is what he cannot."""
    folder = sealed / "sealed"
    lines = (folder / "books.jsonl").read_bytes().splitlines()
    lines[1] = lines[1].replace(b'"actor":"broker"', b'"actor":"others"')
    prev, chain = FIRST, []
    for leaf in lines:
        prev = chained(prev, leaf_hash(leaf))
        chain.append(prev)
    (folder / "books.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "books.chain").write_text("\n".join(chain) + "\n")
    write_manifest(sealed)
    assert "checkpoint broker/books of size 5" in wheres(verify(sealed, KEYS))


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("sealed/books.jsonl", "sealed/books.*"),
        ("sealed/checkpoints.txt", "sealed/checkpoints.txt"),
        ("manifest.json", "manifest.json"),
        ("manifest.sig", "manifest.sig"),
    ],
)
async def test_a_file_that_is_missing_is_named(sealed: Path, name: str, where: str) -> None:
    (sealed / name).unlink()
    assert where in wheres(verify(sealed, KEYS))


async def test_an_export_without_streams_is_held_against_its_signed_manifest(tmp_path: Path) -> None:
    (tmp_path / "focus.csv").write_text("BilledCost\n1.0\n")
    write_manifest(tmp_path)
    sign_manifest(tmp_path, SIGNER)
    assert verify(tmp_path, KEYS).problems == ()
    (tmp_path / "focus.csv").write_text("BilledCost\n2.0\n")
    assert wheres(verify(tmp_path, KEYS)) == ["focus.csv"]


async def test_streams_that_were_taken_out_are_missed(sealed: Path) -> None:
    shutil.rmtree(sealed / "sealed")
    assert "sealed/books.jsonl" in wheres(verify(sealed, KEYS))


async def test_a_tail_that_was_cut_off_is_found(sealed: Path) -> None:
    for name in ("books.jsonl", "books.chain"):
        file = sealed / "sealed" / name
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    write_manifest(sealed)
    sign_manifest(sealed, SIGNER)
    assert wheres(verify(sealed, KEYS)) == ["sealed/books.jsonl"]


async def test_a_file_that_was_slipped_in_is_found(sealed: Path) -> None:
    (sealed / "more.csv").write_text("x")
    assert wheres(verify(sealed, KEYS)) == ["more.csv"]


async def test_another_key_trusts_nothing(sealed: Path) -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    problems = verify(sealed, read_keys(verifier_key(other, "broker"))).problems
    assert {"a key that was not given" in problem.message for problem in problems} >= {True}


@pytest.mark.parametrize("text", ["", "broker+00000000+AAAA", "no key", "-----BEGIN PUBLIC KEY-----\nAA\n"])
def test_a_public_key_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadKey):
        read_keys(text)


def _signed_anew(folder: Path) -> None:
    """What an owner of database and broker can do: rewrite an entry, every hash after it, and have it all signed."""
    sealed = folder / "sealed"
    notes = [read_checkpoint(each, KEYS) for each in split_notes((sealed / "checkpoints.txt").read_bytes())[0]]
    leaves = (sealed / "books.jsonl").read_bytes().splitlines()
    leaves[1] = leaves[1].replace(b'"actor":"broker"', b'"actor":"others"')
    frontier, chain, states = Frontier(), [FIRST], {}
    for seq, leaf in enumerate(leaves, start=1):
        frontier.add(leaf_hash(leaf))
        chain.append(chained(chain[-1], leaf_hash(leaf)))
        states[seq] = (frontier.root().hex(), chain[-1])
    (sealed / "books.jsonl").write_bytes(b"\n".join(leaves) + b"\n")
    (sealed / "books.chain").write_text("\n".join(chain[1:]) + "\n")
    for at, each in enumerate(notes):
        if each.origin.endswith("/books"):
            root, newest = states[each.size]
            notes[at] = Checkpoint(origin=each.origin, size=each.size, root=root, chain=newest)
    text = "".join(sign_checkpoint(SIGNER.key, SIGNER.name, each) for each in notes)
    (sealed / "checkpoints.txt").write_text(text)
    write_manifest(folder)
    sign_manifest(folder, SIGNER)


async def test_books_that_were_rewritten_and_signed_anew_do_not_fit_the_checkpoints_kept_outside(sealed: Path) -> None:
    """Nothing compared with them: an export that the owner of the database had signed again was good."""
    kept = sealed.parent / f"{sealed.name}-kept.txt"
    shutil.copy(sealed / "sealed" / "checkpoints.txt", kept)
    honest = verify(sealed, KEYS, kept)
    assert (honest.problems, honest.outside) == ((), 3)
    _signed_anew(sealed)
    assert verify(sealed, KEYS).problems == ()
    found = wheres(verify(sealed, KEYS, kept))
    assert [each.rpartition(", ")[2] for each in found] == [
        f"checkpoint broker/books of size {size}" for size in (5, 6)
    ]
    # both histories in one file: two notes of one size, both well signed, and only one of them can be true
    both = kept.read_bytes() + (sealed / "sealed" / "checkpoints.txt").read_bytes()
    kept.write_bytes(both)
    assert len(verify(sealed, KEYS, kept).problems) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: b"", "holds no checkpoint"),
        (lambda raw: raw[:-1], "no whole number of notes"),
        (lambda raw: raw.replace(b"broker/books\n5\n", b"broker/books\n4\n"), "was changed"),
    ],
)
async def test_a_file_of_checkpoints_must_be_signed_as_a_whole(
    sealed: Path, change: Callable[[bytes], bytes], says: str
) -> None:
    kept = sealed.parent / f"{sealed.name}-kept.txt"
    kept.write_bytes(change((sealed / "sealed" / "checkpoints.txt").read_bytes()))
    assert any(says in each.message for each in verify(sealed, KEYS, kept).problems)


async def test_an_export_that_was_cut_back_to_an_older_checkpoint_misses_the_newer_one(sealed: Path) -> None:
    kept = sealed.parent / f"{sealed.name}-kept.txt"
    notes, _ = split_notes((sealed / "sealed" / "checkpoints.txt").read_bytes())
    kept.write_text("".join(notes))
    for name in ("books.jsonl", "books.chain"):
        file = sealed / "sealed" / name
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:5]))
    older = [each for each in notes if not each.startswith("broker/books\n6\n")]
    (sealed / "sealed" / "checkpoints.txt").write_text("".join(older))
    write_manifest(sealed)
    sign_manifest(sealed, SIGNER)
    assert verify(sealed, KEYS).problems == ()
    [found] = verify(sealed, KEYS, kept).problems
    assert "size 6" in found.where
    assert "cut off" in found.message
