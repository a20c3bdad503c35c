"""`backtest`: recorded spot pools replayed with several policies. Reads files; asks no broker."""

from __future__ import annotations

import glob
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli import exits
from broker.cli.exits import USAGE, Failure
from broker.cli.output import document, line, table

if TYPE_CHECKING:
    from solver.backtest.traces import Trace
    from solver.spot.world import Job, Pools

TRACES = (".json", ".json.gz", ".jsonl", ".jsonl.gz")
COLUMNS = ("policy", "cost/on-demand", "cost/clairvoyant", "makespan/work", "missed", "preemptions")


def backtest(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="More traces (.json, .jsonl) and prices (.csv).")
    ] = None,
    *,
    traces: Annotated[
        list[str], typer.Option(help="Availability traces: files, folders, patterns, separated by commas or repeated.")
    ],
    prices: Annotated[
        list[str] | None, typer.Option(help="Price lists (CSV) with spot and on-demand of what the traces record.")
    ] = None,
    spot_price: Annotated[
        float | None, typer.Option(min=0.001, help="Spot as a part of on-demand, where there are no price lists.")
    ] = None,
    work_hours: Annotated[float, typer.Option(min=0.1, help="Work, in hours of one machine.")] = 24.0,
    deadline_factor: Annotated[float, typer.Option(min=1.0, help="The deadline, in times of the work.")] = 1.5,
    restart_minutes: Annotated[float, typer.Option(min=0.0, help="What each start takes, and costs.")] = 12.0,
    policy: Annotated[str, typer.Option(help="Policies, separated by commas; `all` for all.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="Random starts.")] = 20,
    each: Annotated[
        bool,
        typer.Option("--each", help="Each trace by itself; else they are zones that one machine may move between."),
    ] = False,
    chart: Annotated[Path | None, typer.Option(help="Also draw it, as .svg or .png (needs the extra `chart`).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """What policies would have cost in recorded spot pools: 0 missed is the promise, the cost beside hindsight the proof."""
    # numpy takes a fifth of a second to import: not for every command
    from solver.backtest import run  # noqa: PLC0415
    from solver.errors import SolverError  # noqa: PLC0415
    from solver.spot.world import Job  # noqa: PLC0415

    chosen = list(run.POLICIES) if policy == "all" else [name.strip() for name in policy.split(",") if name.strip()]
    chosen = list(dict.fromkeys(chosen))
    unknown = [name for name in chosen if name not in run.POLICIES]
    if unknown or not chosen:
        raise Failure(f"--policy {policy!r}: want some of {', '.join(run.POLICIES)}", USAGE)
    if chart is not None and chart.suffix not in (".svg", ".png"):
        raise Failure(f"--chart {chart}: want a name that ends in .svg or .png", USAGE)
    more = files or []
    price_files = [*(prices or []), *(name for name in more if not name.endswith(TRACES))]
    job = Job(work_hours * 3600, work_hours * deadline_factor * 3600, restart_minutes * 60)
    if job.deadline_s < job.work_s + job.restart_s:
        raise Failure(
            f"--deadline-factor {deadline_factor:g}: {work_hours:g} h of work and one start of {restart_minutes:g} min do not "
            f"fit into {job.deadline_s / 3600:g} h; nothing can be in time",
            USAGE,
        )
    inputs: dict[str, bytes] = {}
    try:
        records = _traces(_paths([*traces, *(name for name in more if name.endswith(TRACES))], TRACES), inputs)
        groups = [records]
        if each:
            groups = [[record] for record in records if _is_long_enough(record, job, len(records))]
        if not groups:
            raise Failure("no trace is long enough for the job", USAGE)
        worlds = [(group, _pools(group, price_files, spot_price, inputs)) for group in groups]
        results, rows = run.backtest(worlds, job, chosen, seeds)
    except SolverError as wrong:
        raise Failure(str(wrong), USAGE) from wrong
    told = run.report(results, rows, job, worlds, inputs, seeds)
    if chart is not None:
        _draw(told, chart)
    if as_json:
        document(told)
    else:
        _show(told)


def _traces(paths: list[Path], inputs: dict[str, bytes]) -> list[Trace]:
    from solver.backtest import traces as formats  # noqa: PLC0415

    return [formats.read(str(path), _content(path, inputs)) for path in paths]


def _is_long_enough(record: Trace, job: Job, of: int) -> bool:
    """Of many traces, those too short for the job are left out, and named; a lone one is refused."""
    from solver.backtest import run  # noqa: PLC0415
    from solver.backtest.errors import BadTrace  # noqa: PLC0415

    try:
        run.starts([record], job, 1)
    except BadTrace as short:
        if of == 1:
            raise
        line(f"left out: {short}", sys.stderr)
        return False
    return True


def _pools(traces: list[Trace], files: list[str], spot_price: float | None, inputs: dict[str, bytes]) -> Pools:
    from solver.backtest import prices as lists  # noqa: PLC0415
    from solver.spot.world import Pools  # noqa: PLC0415

    if spot_price is not None:
        return Pools((spot_price,) * len(traces), 1.0)
    if not files:
        raise Failure("give --prices FILES, or --spot-price as a part of on-demand", USAGE)
    paths = _paths(files, (".csv", ".csv.gz"))
    return lists.pools(lists.read({str(path): _content(path, inputs) for path in paths}), traces)


def _paths(given: list[str], endings: tuple[str, ...]) -> list[Path]:
    """Files, patterns and folders as files, in the order given. Raises Failure naming what is not there."""
    found: list[Path] = []
    for name in (part for text in given for part in text.split(",") if part):
        path = Path(name)
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.name.endswith(endings))
        else:
            inside = [path] if path.is_file() else [Path(each) for each in sorted(glob.glob(name))]  # noqa: PTH207
        if not inside:
            raise Failure(f"{name}: no such file, or a folder without {', '.join(endings)}", USAGE)
        found += inside
    return list(dict.fromkeys(found))


def _content(path: Path, inputs: dict[str, bytes]) -> bytes:
    name = str(path)
    if name not in inputs:
        try:
            inputs[name] = path.read_bytes()
        except OSError as wrong:
            raise Failure(f"{path}: {wrong.strerror or wrong}", USAGE) from wrong
    return inputs[name]


def _draw(told: dict[str, Any], path: Path) -> None:
    from solver.backtest.chart import draw  # noqa: PLC0415

    try:
        draw(told, str(path))
    except ModuleNotFoundError as missing:
        raise Failure(f"--chart needs {missing.name}: pip install 'compute-broker[chart]'", exits.ERROR) from missing
    except OSError as wrong:
        raise Failure(f"--chart {path}: {wrong.strerror or wrong}", USAGE) from wrong


def _show(told: dict[str, Any]) -> None:
    rows = [
        (
            each["policy"],
            f"{each['cost_over_on_demand']:.3f}",
            "-" if each["cost_over_clairvoyant"] is None else f"{each['cost_over_clairvoyant']:.3f}",
            f"{each['makespan_over_work']:.3f}",
            str(each["missed"]),
            f"{each['preemptions']:.1f}",
        )
        for each in told["policies"]
    ]
    table(COLUMNS, rows)
    line(f"inputs, prices and seeds: sha256 {told['sha256']}")
