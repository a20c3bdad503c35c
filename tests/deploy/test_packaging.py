"""What an operator installs: the wheel, the systemd unit, the container recipe and the chart, each before its own judge."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import helm_python as helm
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "broker"


def ran(*argv: str | Path) -> str:
    done = subprocess.run([str(each) for each in argv], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_wheel_ships_migrations_and_what_workers_need(tmp_path: Path) -> None:
    ran(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    migrations = {f"broker/migrations/versions/{file.name}" for file in (ROOT / "alembic" / "versions").glob("*.py")}
    assert migrations | {"broker/migrations/env.py"} <= shipped
    for schema in (ROOT / "workers" / "agent" / "schemas").glob("*.json"):
        assert f"workers/agent/schemas/{schema.name}" in shipped
    assert not {name for name in shipped if name.startswith(("tests/", "alembic/", "benchmarks/", "scripts/"))}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
def test_systemd_takes_the_unit_and_finds_little_exposed(tmp_path: Path) -> None:
    unit = tmp_path / "broker.service"
    text = (DEPLOY / "systemd" / "broker.service").read_text()
    unit.write_text(text.replace("/opt/broker/bin/broker", "/usr/bin/true"))  # it looks whether the program is there
    assert ran("systemd-analyze", "verify", unit) == ""
    ran("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", unit)


def test_the_unit_waits_for_everything_that_a_stop_may_take() -> None:
    text = (DEPLOY / "systemd" / "broker.service").read_text()
    found = re.search(r"^TimeoutStopSec=(\d+)", text, re.MULTILINE)
    assert found
    assert int(found[1]) > 4 * 10, "requests, loops, deliveries and HTTP have shutdown_timeout_s each"


def test_hadolint_finds_nothing_in_the_container_recipe() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    ran(hadolint, "--failure-threshold", "info", DEPLOY / "container" / "Dockerfile")


def test_the_image_installs_the_versions_that_are_tested() -> None:
    def pins(file: Path) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", file.read_text(), re.MULTILINE))

    image, tested = pins(DEPLOY / "container" / "requirements.lock"), pins(ROOT / "requirements.lock")
    assert {"aiohttp", "sqlalchemy", "psycopg", "boto3"} <= image.keys()
    assert {name: version for name, version in image.items() if tested.get(name) != version} == {}, "run: make lock"


def rendered(**values: Any) -> dict[str, Any]:
    """kind → manifest."""
    with helm.Chart.load(CHART) as chart:
        texts = [text for name, text in chart.render(values=values, name="demo").items() if name.endswith(".yaml")]
    manifests = [each for text in texts for each in yaml.safe_load_all(text) if each]
    return {each["kind"]: each for each in manifests}


def test_helm_lints_the_chart() -> None:
    found = helm.lint(CHART)
    assert found["errors"] == []
    assert [each for each in found["messages"] if each["severity"] > 1] == []


def test_the_chart_runs_one_broker_as_nobody_with_a_volume() -> None:
    kinds = rendered()
    assert set(kinds) == {"ConfigMap", "Service", "ServiceAccount", "StatefulSet"}
    spec = kinds["StatefulSet"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert spec["replicas"] == 1
    assert spec["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {each["mountPath"] for each in container["volumeMounts"]} >= {"/var/lib/broker", "/tmp"}
    assert spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "20Gi"
    assert {probe: container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")} == {
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }


def test_the_chart_gives_replicas_a_database_or_refuses() -> None:
    with pytest.raises(helm.HelmError, match="more than one broker needs PostgreSQL"):
        rendered(replicas=2)
    kinds = rendered(
        replicas=2,
        existingSecret="broker",
        image={"repository": "registry.example/broker", "digest": "sha256:" + "a" * 64},
        ingress={"enabled": True, "host": "broker.example", "tlsSecret": "tls"},
        serviceMonitor={"enabled": True, "keySecret": {"name": "monitoring", "key": "broker"}},
    )
    assert {"PodDisruptionBudget", "Ingress", "ServiceMonitor"} <= kinds.keys()
    container = kinds["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example/broker@sha256:" + "a" * 64
    assert container["envFrom"] == [{"secretRef": {"name": "broker"}}]


def test_the_charts_broker_ends_tls_itself_and_is_probed_so() -> None:
    """The probes spoke plain HTTP to a port that speaks TLS: the pod was killed before its first answer."""
    kinds = rendered(
        tls={"secret": "broker-tls"}, serviceMonitor={"enabled": True, "keySecret": {"name": "m", "key": "k"}}
    )
    pod = kinds["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    schemes = [container[probe]["httpGet"]["scheme"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert schemes == ["HTTPS"] * 3
    told = {each["name"]: each["value"] for each in container["env"]}
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "tls"]
    assert told["BROKER_HTTP__TLS_KEY"] == mount["mountPath"] + "/tls.key"
    assert [each["secret"]["secretName"] for each in pod["volumes"] if each["name"] == "tls"] == ["broker-tls"]
    assert kinds["ServiceMonitor"]["spec"]["endpoints"][0]["scheme"] == "https"


def test_the_images_health_check_asks_where_the_broker_answers_on_its_machine(tmp_path: Path) -> None:
    """It asked port 8080 in clear, also where that port speaks TLS: the container was never healthy."""
    recipe = (DEPLOY / "container" / "Dockerfile").read_text()
    _, _, script = json.loads(recipe.partition("HEALTHCHECK")[2].partition("CMD ")[2].partition("\n")[0])

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Answering) as there:
        Thread(target=there.serve_forever, daemon=True).start()
        lock = {"pid": 1, "url": f"http://127.0.0.1:{there.server_address[1]}"}
        (tmp_path / "broker.lock").write_text(json.dumps(lock))
        asked = [sys.executable, "-c", script]
        for proxy in ({}, {"http_proxy": "http://127.0.0.1:9"}):  # which knows nothing of this machine's addresses
            environment = {"BROKER_DATA": str(tmp_path)} | proxy
            assert subprocess.run(asked, env=environment, check=False).returncode == 0, proxy
        there.shutdown()
    assert subprocess.run(asked, env={"BROKER_DATA": str(tmp_path)}, capture_output=True, check=False).returncode == 1


def test_the_chart_refuses_values_that_it_does_not_know() -> None:
    with pytest.raises(helm.HelmError, match="replica"):
        rendered(replica=2)


def test_the_chart_says_that_it_was_not_run_against_a_live_cluster() -> None:
    for file in (CHART / "Chart.yaml", CHART / "templates" / "NOTES.txt"):
        assert "never run against a live cluster" in file.read_text()
