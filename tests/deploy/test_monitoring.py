"""What watches a broker names only what a broker exposes. Judge: promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.metrics.catalogue import CATALOGUE
from scripts import metrics_doc

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is missing")


def promtool(*arguments: str) -> None:
    ran = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def series() -> set[str]:
    """Names of time series that the catalogue's metrics have."""
    found = {family.name for family in CATALOGUE if family.kind != "histogram"}
    for family in CATALOGUE:
        if family.kind == "histogram":
            found |= {family.name + suffix for suffix in ("_bucket", "_sum", "_count")}
    return found


def expressions(node: Any) -> Iterator[str]:
    """Every PromQL expression in a rule file or a dashboard."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "expr")
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def named(document: Any) -> set[str]:
    return {name for expression in expressions(document) for name in re.findall(r"\bbroker_\w+", expression)}


def test_the_documented_list_is_the_catalogue() -> None:
    assert metrics_doc.FILE.read_text() == metrics_doc.render(), "run: python -m scripts.metrics_doc"


def test_names_are_nouns_with_a_unit_and_labels_are_no_ids() -> None:
    allowed = {"status", "outcome", "direction", "state", "cause", "market", "stage", "stopped_by", "loop", "method",
               "route", "version", "rule"}  # fmt: skip
    for family in CATALOGUE:
        assert re.fullmatch(r"broker(_[a-z]+)+", family.name)
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert set(family.labels) <= allowed, f"{family.name}: a new label needs a bound on its values"


def test_alerts_name_metrics_that_there_are() -> None:
    assert named(yaml.safe_load((RULES / "alerts.yaml").read_text())) <= series()


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown = named(json.loads((DEPLOY / "grafana" / "broker.json").read_text()))
    assert shown <= series()
    hidden = {family.name for family in CATALOGUE if not any(name.startswith(family.name) for name in shown)}
    assert hidden == {"broker_build_info", "broker_loop_runs_total", "broker_market_poll_failing"}, hidden


def test_every_error_of_the_log_is_in_the_list_of_events() -> None:
    """Some were not, among them `rent.account_changed`, which wants a person."""
    documented = set(re.findall(r"`([a-z_]+\.(?:[a-z_]+|\*))`", (DEPLOY.parent / "docs" / "operations.md").read_text()))
    said = set[str]()
    for room in ("broker", "workers", "jobs", "markets", "ledger"):
        for file in (DEPLOY.parent / room).rglob("*.py"):
            # the agent and the sandbox provider are programs of their own, with logs of their own
            if not {"agent", "sandbox"} & set(file.parts):
                said |= set(re.findall(r'\blog\.error\(\s*"([a-z_]+\.[a-z_]+)"', file.read_text()))
    assert len(said) > 30
    assert sorted(each for each in said if not {each, each.partition(".")[0] + ".*"} & documented) == []


@needs_promtool
def test_prometheus_takes_the_alert_rules_and_they_fire_when_they_should() -> None:
    promtool("check", "rules", "alerts.yaml")
    promtool("test", "rules", "alerts_test.yaml")


@needs_promtool
def test_prometheus_parses_the_dashboards_expressions(tmp_path: Path) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "broker.json").read_text())
    rules = [{"record": f"panel:{n}", "expr": each} for n, each in enumerate(expressions(dashboard))]
    file = tmp_path / "dashboard.yaml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(file))
