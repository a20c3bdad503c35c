"""The user data of a machine: valid to cloud-init itself, its scripts clean to shellcheck, and run for real."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from markets.aws.cloud_init import HOME, user_data
from markets.market import Download, MachineStart
from markets.offer import Accelerator

AGENT = b"the agent"
IMAGE = f"vllm/vllm-openai@sha256:{'0' * 64}"
GPU = Accelerator("nvidia", "l4", "pcie", 22_888, 1)
TAG = "rental_1"


def start(url: str = "https://broker.example/agent.pyz", sha256: str = "0" * 64, **changes: Any) -> MachineStart:
    fields: dict[str, Any] = {
        "argv": ("/broker/agent.pyz", "run", "--config", "/broker/agent.json"),
        "files": {"agent.json": b'{"it": "is"}'},
        "downloads": {"agent.pyz": Download(url, sha256, "single-use")},
        "image": IMAGE,
        "shm_mib": 1024,
        "entrypoint": ("python3",),
        "dead_man_s": 900,
        "cache": True,
    }
    return MachineStart(**(fields | changes))


def document(chip: Accelerator = GPU, **changes: Any) -> str:
    return user_data(start(**changes), tag=TAG, owner="o", price=Decimal("1.5"), accelerator=chip)


def needed(program: str, package: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed (Debian: {package})")
    return found


@pytest.mark.parametrize("chip", [GPU, Accelerator()])
@pytest.mark.parametrize("dead_man_s", [0, 900])
def test_cloud_init_itself_takes_the_document(tmp_path: Path, chip: Accelerator, dead_man_s: int) -> None:
    program = needed("cloud-init", "cloud-init")
    (tmp_path / "user-data").write_text(document(chip, dead_man_s=dead_man_s))
    command = [program, "schema", "--config-file", str(tmp_path / "user-data")]
    judged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert judged.returncode == 0 and "Valid" in judged.stdout, judged.stdout + judged.stderr


def test_the_scripts_are_clean_to_shellcheck(tmp_path: Path) -> None:
    program = needed("shellcheck", "shellcheck")
    scripts = [each for each in yaml.safe_load(document())["write_files"] if each["path"].endswith(".sh")]
    assert len(scripts) == 2
    for number, each in enumerate(scripts):
        (tmp_path / f"{number}.sh").write_text(each["content"])
    command = [program, "--severity=warning", *(str(path) for path in sorted(tmp_path.glob("*.sh")))]
    judged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout


def test_the_agent_is_fetched_from_a_broker_that_only_its_own_authority_knows() -> None:
    """A private authority was trusted by the agent, and not by the curl that fetches it: each machine was paid for nothing."""
    download = Download("https://broker.example/agent.pyz", "0" * 64, "single-use", "-----BEGIN CERTIFICATE-----")
    files = {each["path"]: each for each in yaml.safe_load(document(downloads={"agent.pyz": download}))["write_files"]}
    assert files["/var/lib/broker/agent.pyz.ca"]["content"] == "-----BEGIN CERTIFICATE-----"
    assert "/var/lib/broker/agent.pyz.ca" not in {each["path"] for each in yaml.safe_load(document())["write_files"]}


def test_a_document_that_ec2_would_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="EC2 takes 16384"):
        document(files={"agent.json": b"x" * 20_000})
    with pytest.raises(ValueError, match="names none"):
        document(image=None)


def test_the_machine_looks_for_its_own_death_only_where_it_is_asked_to() -> None:
    with_switch, without = yaml.safe_load(document()), yaml.safe_load(document(dead_man_s=0))
    assert ["systemctl", "enable", "--now", "broker-dead-man.timer"] in with_switch["runcmd"]
    assert "dead" not in str(without)


class Machine:
    """A file system of its own at /var/lib, and programs that say what they were asked to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.program("systemctl", "exit 0")
        self.program("docker", 'case "$1" in wait) echo 0;; esac')
        self.program("nvidia-smi", "exit 0")
        self.program("nvidia-ctk", "exit 0")
        self.program("sleep", "exit 0")

    def program(self, name: str, does: str) -> None:
        file = self.programs / name
        file.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.folder}/asked\n{does}\n')
        file.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()

    async def boot(self, text: str, *, run: str = "worker.sh", before: str = "") -> tuple[int, str]:
        """Lay out what cloud-init would, then run one script; its exit status and what it printed."""
        (self.folder / "lay.py").write_text(
            "import json, os, pathlib\n"
            f"for each in json.loads(pathlib.Path('{self.folder}/files.json').read_text()):\n"
            "    path = pathlib.Path(each['path'])\n"
            "    path.parent.mkdir(parents=True, exist_ok=True)\n"
            "    path.write_text(each['content']); path.chmod(int(each['permissions'], 8))\n"
        )
        files = [each for each in yaml.safe_load(text)["write_files"] if each["path"].startswith(HOME)]
        (self.folder / "files.json").write_text(json.dumps(files))
        script = (
            f"mount -t tmpfs none /var/lib && python3 {self.folder}/lay.py && mkdir -p {HOME}/state && {before or ':'};"
            f" {HOME}/{run}; status=$?; cp -r {HOME} {self.folder}/after; exit $status"
        )
        process = await asyncio.create_subprocess_exec(
            "unshare", "-rm", "sh", "-c", script,
            env={"PATH": f"{self.programs}:/usr/sbin:/usr/bin:/sbin:/bin"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no mount namespace can be made here")
    return Machine(tmp_path)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A broker that gives the agent to who has the token, at the second try."""
    tries = iter(range(1000))

    async def agent(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer single-use":
            return web.Response(status=401)
        return web.Response(status=503) if next(tries) == 0 else web.Response(body=AGENT)

    application = web.Application()
    application.router.add_get("/agent.pyz", agent)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/agent.pyz"
    await runner.cleanup()


SHA256 = hashlib.sha256(AGENT).hexdigest()


async def test_the_machine_fetches_the_agent_runs_it_in_the_image_and_powers_off(machine: Machine, url: str) -> None:
    needed("curl", "curl")
    status, said = await machine.boot(document(url=url, sha256=SHA256))
    assert status == 0, said
    files = machine.folder / "after" / TAG / "files"
    assert (files / "agent.pyz").read_bytes() == AGENT
    assert not list((machine.folder / "after").glob("*.header")), "the token is of no use any more"
    (run,) = [each for each in machine.asked if each.startswith("docker run")]
    for part in (
        "--gpus all",
        "--network host",
        "--shm-size 1024m",
        f"{HOME}/state:/state",
        f"{HOME}/{TAG}/files:/broker:ro",
    ):
        assert part in run
    assert run.endswith(f"--entrypoint python3 {IMAGE} /broker/agent.pyz run --config /broker/agent.json")
    assert "single-use" not in str(machine.asked), "the arguments of programs are for all to read"
    assert machine.asked[-1] == "systemctl poweroff"


@pytest.mark.parametrize(
    ("program", "does", "said"),
    [
        ("docker", '[ "$1" = run ] && exit 125; case "$1" in wait) echo 0;; esac', "ended with status 125"),
        ("docker", 'case "$1" in wait) echo 5;; esac', "ended with status 5"),  # the engine failed
        ("docker", '[ "$1" = image ] && exit 1; exit 0', "failed: sh"),  # the image cannot be pulled
        ("nvidia-smi", "exit 9", "no NVIDIA driver"),
    ],
)
async def test_whatever_goes_wrong_the_machine_powers_off(
    machine: Machine, url: str, program: str, does: str, said: str
) -> None:
    needed("curl", "curl")
    machine.program(program, does)
    status, printed = await machine.boot(document(url=url, sha256=SHA256))
    assert status != 0 and said in printed
    assert machine.asked[-1] == "systemctl poweroff"


async def test_an_agent_with_another_sha256_is_not_run(machine: Machine, url: str) -> None:
    needed("curl", "curl")
    status, _ = await machine.boot(document(url=url, sha256="0" * 64))
    assert status != 0
    assert not [each for each in machine.asked if each.startswith("docker run")]
    assert machine.asked[-1] == "systemctl poweroff"


@pytest.mark.parametrize(
    ("age", "ends"), [("touch -d '-900 seconds'", False), ("touch -d '-1300 seconds'", True), ("rm -f", True)]
)
async def test_a_machine_that_nobody_hears_of_ends_itself(machine: Machine, age: str, ends: bool) -> None:
    """1200 s: the 900 s of one try at the image, which exceed the broker's own patience of 60 s, and a margin."""
    await machine.boot(document(dead_man_s=60), run="dead_man.sh", before=f"{age} {HOME}/state/alive")
    powered_off = (machine.folder / "asked").exists() and machine.asked == ["systemctl poweroff"]
    assert powered_off == ends
