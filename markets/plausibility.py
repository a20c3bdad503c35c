"""Whether a price can be meant: bounds for a device, comparison with other markets, with the same market, and with before.

Pure. A price that fails is quarantined with the reason and stays listed. The bounds are wide on purpose: real list prices
fall 44 % in a day (AWS p5, 2025-06-23) and spot goes from a tenth of on-demand to above it; what they catch is a
unit misread (cents for dollars, one GPU's price for eight), a placeholder, or a phantom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from ledger.money import in_usd
from markets.offer import Offer

# Nobody rents a datacenter device for less, or one device for more: per device-hour, in nano-USD. K80s go for cents.
LEAST_GPU_NANO = 5_000_000
MOST_GPU_NANO = 100_000_000_000
# Of the median of other markets' cheapest, for the same device and pricing: below a fifth nobody sells it, above tenfold
# nobody buys it. (A100-80 on 2025-11-02: 0.98 to 2.40; H100 SXM 1.00 to 6.88.)
FIFTH = 5
TENFOLD = 10
PEERS = 3
# A machine of several devices against the single one of the same market: per device, a discount never reaches half.
PER_DEVICE_PPM = 450_000
# Against the same offer before, unless it says so twice.
JUMP = 8


@dataclass(frozen=True, slots=True)
class Peers:
    """Nano-USD per device-hour of one device and pricing: each other market's cheapest."""

    cheapest: Mapping[str, int]

    @property
    def median(self) -> int | None:
        return round(median(self.cheapest.values())) if len(self.cheapest) >= PEERS else None


def implausible(
    offer: Offer,
    gpu_nano: int,
    *,
    peers: Peers | None = None,
    single_nano: int | None = None,
    before: int | None = None,
) -> str | None:
    """Why a known price of `gpu_nano` per device-hour cannot be believed, or None.

    `peers` are other markets', `single_nano` is this market's cheapest machine with one such device in the same region,
    `before` what this offer cost when it was last believed and the market has not repeated itself since.
    """
    if offer.pricing == "token" or offer.accelerator.kind == "none":
        return None
    why = _out_of_bounds(gpu_nano) or _mixed_up(offer, gpu_nano, single_nano) or _against(peers, gpu_nano)
    why = why or _jumped(gpu_nano, before)
    return why and (
        f"offer {offer.key}: {in_usd(gpu_nano)} per {offer.accelerator.name}-hour is implausible ({why}); quarantined "
        f"(source: {offer.source})"
    )


def _out_of_bounds(gpu_nano: int) -> str | None:
    if LEAST_GPU_NANO <= gpu_nano <= MOST_GPU_NANO:
        return None
    return f"outside of {in_usd(LEAST_GPU_NANO)} to {in_usd(MOST_GPU_NANO)}"


def _mixed_up(offer: Offer, gpu_nano: int, single_nano: int | None) -> str | None:
    count = offer.accelerator.count
    if single_nano is None or count < 2 or gpu_nano * 1_000_000 >= single_nano * PER_DEVICE_PPM:
        return None
    return f"one alone costs {in_usd(single_nano)} there: it looks like the price of one for {count}"


def _against(peers: Peers | None, gpu_nano: int) -> str | None:
    middle = peers.median if peers else None
    if peers is None or middle is None or middle <= gpu_nano * FIFTH <= middle * FIFTH * TENFOLD:
        return None
    side = "below a fifth of" if gpu_nano < middle else "above tenfold"
    return f"{side} {in_usd(middle)}, the median of {len(peers.cheapest)} other markets"


def _jumped(gpu_nano: int, before: int | None) -> str | None:
    if before is None or before <= gpu_nano * JUMP <= before * JUMP * JUMP:
        return None
    return f"{in_usd(before)} before; believed when the market says it again"
