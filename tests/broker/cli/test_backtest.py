"""`broker backtest` as it is typed: the fields of its report, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.cli.exits import Failure
from broker.cli.main import app

FIELDS = {"policy", "cost_over_on_demand", "cost_over_clairvoyant", "makespan_over_work", "missed", "preemptions"}


def trace(folder: Path, zone: str, pattern: list[int]) -> Path:
    path = folder / f"{zone}_v100_1.json"
    path.write_text(json.dumps({"metadata": {"gap_seconds": 600}, "data": pattern * 60}))
    return path


def priced(folder: Path) -> list[Path]:
    spot, listed = folder / "spot.csv", folder / "on_demand.csv"
    spot.write_text("timestamp,zone,instance,spot_usd_hour,product\nt,us-east-1a,p3.2xlarge,0.918,Linux\n")
    listed.write_text("date,region,instance,on_demand_usd_hour\n2023-01-01,us-east-1,p3.2xlarge,3.06\n")
    return [spot, listed]


def run(*arguments: str | Path):
    return CliRunner().invoke(app, ["backtest", *map(str, arguments)])


def test_the_report_has_a_row_a_policy_and_names_its_inputs(tmp_path: Path) -> None:
    zones = [trace(tmp_path, "us-east-1a", [1, 1, 1, 1, 0, 0]), trace(tmp_path, "us-east-1c", [0, 0, 1, 1, 1, 1])]
    files = priced(tmp_path)
    given = ["--traces", zones[0], zones[1], "--prices", f"{files[0]},{files[1]}", "--work-hours", "6", "--seeds", "2"]
    done = run(*given, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert all(set(each) == FIELDS for each in told["policies"])
    by_name = {each["policy"]: each for each in told["policies"]}
    assert by_name["broker"]["missed"] == 0
    assert by_name["broker"]["cost_over_on_demand"] < by_name["on-demand"]["cost_over_on_demand"]
    assert len(told["inputs"]) == 4
    assert told["worlds"][0]["spot_usd_hour"] == [0.918, 0.918]
    assert json.loads(run(*given, "--json").stdout)["sha256"] == told["sha256"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--spot-price", "0.3", "--policy", "magic"], "magic"),
        ([], "--prices"),
        (["--spot-price", "0.3", "--deadline-factor", "1.0"], "nothing can be in time"),
        (["--spot-price", "0.3", "--work-hours", "900"], "leave no start"),
        (["--prices", "none.csv"], "none.csv"),
    ],
)
def test_what_was_wrong_is_said(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run("--traces", trace(tmp_path, "us-east-1a", [1, 0]), *arguments)
    assert isinstance(done.exception, Failure), done.output
    assert said in str(done.exception)


def test_a_chart_is_drawn_by_the_plotting_library(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chart = tmp_path / "chart.svg"
    record = trace(tmp_path, "us-east-1a", [1, 1, 0])
    done = run("--traces", record, "--spot-price", "0.3", "--work-hours", "4", "--seeds", "1", "--chart", chart)
    assert done.exit_code == 0, done.output
    assert "<svg" in chart.read_text()
