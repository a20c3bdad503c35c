"""RFC 6962's trees, held against the vectors of its reference log and against its own recursive definition."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.merkle import EMPTY, Frontier, inclusion, is_included, leaf_hash, node_hash, root_of

# The leaves and roots of the certificate-transparency reference log's own test.
LEAVES = [
    bytes.fromhex(each)
    for each in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def recursive(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 §2.1, word for word."""
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(recursive(leaves[:split]), recursive(leaves[split:]))


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_the_reference_log(size: int) -> None:
    assert root_of(LEAVES[:size]).hex() == ROOTS[size - 1]


@settings(max_examples=60, deadline=None)
@given(leaves=st.lists(st.binary(max_size=3), max_size=70), cut=st.integers(0, 70))
def test_a_log_that_was_put_away_and_grew_has_the_root_of_the_whole(leaves: list[bytes], cut: int) -> None:
    first = Frontier()
    for leaf in leaves[:cut]:
        first.add(leaf_hash(leaf))
    grown = Frontier.decode(first.size, first.encode())
    for leaf in leaves[cut:]:
        grown.add(leaf_hash(leaf))
    assert grown.root() == recursive(leaves)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40), at=st.integers(0, 39), other=st.integers(0, 39))
def test_a_path_proves_its_own_leaf_and_no_other(size: int, at: int, other: int) -> None:
    at, other = at % size, other % size
    hashes = [leaf_hash(bytes([number])) for number in range(size)]
    path = inclusion(hashes, at)
    root = recursive([bytes([number]) for number in range(size)])
    assert is_included(hashes[at], at, size, path, root)
    assert is_included(hashes[other], at, size, path, root) == (other == at)


def test_peaks_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="2 peaks"):
        Frontier(3, [b"x" * 32])
