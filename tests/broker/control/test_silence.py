"""When a machine is given up: a table, one row a story."""

from __future__ import annotations

import pytest

from broker.control.reconcile import hello_patience_s, silence
from broker.tables import Worker
from markets.tables import RentalRow
from workers.profile import ModelProfile

SECOND = 1_000_000
PATIENCE = (120 * SECOND, 60 * SECOND)


def rental(created_s: int = 0) -> RentalRow:
    return RentalRow(id="rental_1", created_us=created_s * SECOND)


def worker(state: str, *, seen_s: int | None = None, error: str | None = None) -> Worker:
    seen_us = None if seen_s is None else seen_s * SECOND
    return Worker(rental="rental_1", bootstrap_sha256="", state=state, seen_us=seen_us, error=error)


@pytest.mark.parametrize(
    ("launch", "image", "boot_s", "seconds"),
    [
        ("process", None, 1, 121),
        ("process", "i@sha256:1", 1, 121),  # a process pulls nothing
        ("container", "i@sha256:1", None, 720),
        ("vm", "i@sha256:1", 90, 810),  # it was given up after 210 s, in the middle of its pull, again and again
    ],
)
def test_a_machine_that_pulls_an_image_is_given_the_time_for_it(
    launch: str, image: str | None, boot_s: int | None, seconds: int
) -> None:
    profile = ModelProfile(id="m", engine="vllm", weights="/m", image=image)
    assert hello_patience_s({"launch": launch, "boot_s": boot_s}, profile, 120) == seconds


@pytest.mark.parametrize(
    ("who", "now_s", "listening_since_s", "says"),
    [
        (worker("awaited"), 100, 0, None),  # it may still boot
        (worker("awaited"), 121, 0, "no worker said hello within 121 s"),
        (worker("awaited"), 200, 150, None),  # the broker was down when it may have called
        (None, 121, 0, "no worker said hello within 121 s"),
        (worker("ready", seen_s=100), 150, 0, None),
        (worker("ready", seen_s=100), 161, 0, "its worker has been silent for 61 s"),
        (worker("ready", seen_s=100), 500, 480, None),  # nobody is blamed for what he said to a dead broker
        (worker("gone", seen_s=100), 101, 0, "its worker said goodbye"),
        (worker("failed", error="no GPU"), 1, 0, "its worker failed: no GPU"),
    ],
)
def test_a_machine_is_given_up_for_a_reason_and_not_before(
    who: Worker | None, now_s: int, listening_since_s: int, says: str | None
) -> None:
    assert silence(rental(), who, now_s * SECOND, listening_since_s * SECOND, PATIENCE) == says
