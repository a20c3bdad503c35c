"""What a Google account may still use of an accelerator in a region, as its regions say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from markets.errors import MarketsError
from markets.offer import QuotaShare

if TYPE_CHECKING:
    from markets.sources.gcp_account import Account

_log = structlog.get_logger("markets.gcp")
# Compute Engine's document, `Quota.metric` of a region; a spot machine's begin with PREEMPTIBLE_.
METRICS: Mapping[str, str] = {
    "nvidia-l4": "NVIDIA_L4_GPUS",
    "nvidia-tesla-t4": "NVIDIA_T4_GPUS",
    "nvidia-tesla-p100": "NVIDIA_P100_GPUS",
    "nvidia-tesla-v100": "NVIDIA_V100_GPUS",
    "nvidia-tesla-a100": "NVIDIA_A100_GPUS",
    "nvidia-a100-80gb": "NVIDIA_A100_80GB_GPUS",
}


async def quotas_left(account: Account) -> Mapping[tuple[str, str], int]:
    """A key that may not read regions has prices all the same: its quotas are unknown."""
    try:
        return await account.quotas()
    except MarketsError as error:
        _log.warning("gcp.quotas_unknown", error=str(error))
        return {}


def quota_of(
    accelerator: str, region: str, count: int, quotas: Mapping[tuple[str, str], int], *, is_spot: bool
) -> QuotaShare | None:
    """The account's quota of the accelerator in the region, which all its machines there share. Unknown where the region grants
    none under this name: what is newer than an A100 is counted by another API, spot without a quota of its own as on demand."""
    metric = METRICS.get(accelerator)
    if metric is None:
        return None
    metric = f"PREEMPTIBLE_{metric}" if is_spot else metric
    left = quotas.get((region, metric))
    return None if left is None else QuotaShare(f"gcp/{region}/{metric}", count, left, "GPU")
