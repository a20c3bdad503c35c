"""The report as a picture: what each policy cost, and how long it took. SVG or PNG by the file's name; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def draw(report: Mapping[str, Any], path: str) -> None:
    """Write the chart. Raises ModuleNotFoundError without matplotlib, ValueError for a format that it does not write."""
    # The extra `chart`: not for a broker that only works.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = report["sha256"]  # the same report, the same file
    from matplotlib import pyplot  # noqa: PLC0415

    names = [each["policy"] for each in report["policies"]]
    figure, (cost, time) = pyplot.subplots(1, 2, figsize=(11, 0.5 * len(names) + 2), sharey=True)
    for axes, field, title in (
        (cost, "cost_over_on_demand", "cost (on-demand = 1)"),
        (time, "makespan_over_work", f"time (work = 1, deadline = {report['deadline_factor']:g})"),
    ):
        values = [each[field] for each in report["policies"]]
        bars = axes.barh(names, values, color="#4477aa")
        axes.bar_label(bars, fmt="%.3f", padding=3)
        axes.set_xlabel(title)
        axes.margins(x=0.15)
    cost.invert_yaxis()
    time.axvline(report["deadline_factor"], color="#cc3311", linewidth=1)
    figure.suptitle(
        f"{report['work_hours']:g} h of work, restarts of {report['restart_minutes']:g} min, {report['sha256'][:12]}"
    )
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
    pyplot.close(figure)
