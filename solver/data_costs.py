"""What is paid besides an instance's time, in nano-USD rounded up: for data that moves in and out, and once for each start."""

from __future__ import annotations

from collections.abc import Mapping

from solver.types import OfferView, Work

GB = 10**9


def moving_nano(work: Work, offer: OfferView) -> int:
    """Nano-USD for bringing the whole work's input there and its output back.

    Of text this is little (a billion tokens are 4 GB); it decides between places that cost nearly the same.
    """
    return -(-(work.input_bytes * offer.ingress_nano_gb + work.output_bytes * offer.egress_nano_gb) // GB)


def once_nano(offer: OfferView, model: str, fetched_bytes: Mapping[str, int]) -> int:
    """Nano-USD that one start of the model costs beyond its time: of the deposit what stays there, and its download."""
    return offer.lost_nano - (-fetched_bytes.get(model, 0) * offer.ingress_nano_gb // GB)
