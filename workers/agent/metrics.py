"""Reading an engine's Prometheus text, as far as the driver needs it."""

from __future__ import annotations

import math
from collections.abc import Mapping

# A share of a whole does not add up over an engine's replicas; counts and queues do.
_TAKE_LARGEST = frozenset({"kv_usage"})


def read_metrics(text: str, names: Mapping[str, str]) -> dict[str, float]:
    """The samples that `names` (ours → the engine's) asks for, summed over label sets; absent ones are left out.

    >>> read_metrics('x:running{engine="0"} 3\\nx:running{engine="1"} 4.0\\nx:other 9\\n', {"running": "x:running"})
    {'running': 7.0}
    """
    ours = {sample: name for name, sample in names.items()}
    found: dict[str, float] = {}
    for row in text.splitlines():
        if not row or row[0] == "#":
            continue
        name = ours.get(row.partition("{")[0].partition(" ")[0])
        if name is None:
            continue
        # after the labels (whose values may hold blanks): value, then perhaps a timestamp
        fields = row[row.rfind("}") + 1 :].split() if "{" in row else row.split()[1:]
        value = _number(fields[0]) if fields else None
        if value is None:
            continue
        before = found.get(name, 0.0)
        found[name] = max(before, value) if name in _TAKE_LARGEST else before + value
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
