"""Own hosts over a real sshd: who may log in, what docker is asked for, and what a dying connection means."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_identity

from markets.docker_run import Docker, device_args, run_argv
from markets.docker_shell import containers
from markets.errors import (
    Ambiguous,
    NoCapacity,
    NotAuthorized,
    PartialList,
    RentalNotFound,
    StillReleasing,
    Unavailable,
)
from markets.hosts import HostsMarket
from markets.machine import processes_of
from markets.market import Intent, MachineStart
from markets.offer import Accelerator
from markets.ssh import VALID_S, Authority, Connection, Timeouts, new_authority_key, parse_host_key
from tests.markets.own_hosts import HostRig, end_sessions
from tests.markets.rigs import OWNER, new_tag, until, until_true

SLEEP = MachineStart(argv=("sleep", "1000"), image="busybox")


def intent(tag: str, start: MachineStart = SLEEP) -> Intent:
    return Intent(tag, OWNER, start, Decimal(1))


async def rent(market: HostsMarket, tag: str, start: MachineStart = SLEEP) -> None:
    await market.rent((await market.offers())[0], intent(tag, start))


def cut_sessions(host: HostRig) -> None:
    """The cable is pulled and the host notices: all sessions end, what was started goes on."""
    end_sessions(host.sshd)


# Logging in


def test_a_login_certificate_is_for_one_user_and_five_minutes() -> None:
    authority = Authority(new_authority_key())
    key = authority.login_key("ubuntu", now_s := int(time.time()))
    blob = key.public_blob
    certificate = load_ssh_public_identity(f"{blob.key_type} {base64.b64encode(blob.key_blob).decode()}".encode())
    assert certificate.valid_principals == [b"ubuntu"]
    assert certificate.valid_before == now_s + VALID_S == now_s + 300
    certificate.verify_cert_signature()
    assert key.get_base64() != authority.login_key("ubuntu", now_s).get_base64()


@pytest.mark.parametrize("kind", ["of the same type", "of another type"])
async def test_a_host_with_another_key_is_refused_by_name(host: HostRig, kind: str) -> None:
    other = Ed25519PrivateKey.generate() if kind == "of the same type" else generate_private_key(SECP256R1())
    public = other.public_key()
    line = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    market = host.market(target=replace(host.own.target, host_key=line))
    offer = (await market.offers())[0]
    assert offer.quarantined is not None and "not the pinned one" in offer.quarantined
    with pytest.raises(NotAuthorized, match=r"host-a .*not the pinned one"):
        await market.rent(offer, intent(new_tag()))
    await market.close()


async def test_a_host_that_does_not_trust_us_says_which_line_it_needs(host: HostRig) -> None:
    stranger = Authority(new_authority_key())
    market = HostsMarket([host.own], authority=stranger, owner=OWNER)
    with pytest.raises(NotAuthorized) as refused:
        await market.rent((await host.market().offers())[0], intent(new_tag()))
    assert stranger.trust_line in str(refused.value)
    await market.close()


async def test_an_expired_certificate_does_not_log_in(host: HostRig) -> None:
    class Yesterday(Authority):
        def login_key(self, user: str, now_s: int) -> object:  # type: ignore[override]
            return super().login_key(user, now_s - 86_400)

    (host.folder / "authorized_keys").write_text((expired := Yesterday(new_authority_key())).trust_line + "\n")
    with pytest.raises(NotAuthorized):
        Connection(host.own.target, expired, Timeouts()).run("true")


def test_a_host_key_that_cannot_be_read_is_said_so() -> None:
    for wrong in ("", "ssh-ed25519", "ssh-ed25519 ???", "ssh-nothing AAAA"):
        with pytest.raises(ValueError, match="host key"):
            parse_host_key(wrong)


# What docker is asked for


async def test_docker_is_asked_for_exactly_what_was_meant(host: HostRig) -> None:
    settings = replace(host.own.docker, gpus=True, volumes=("/models:/models:ro",))
    market, tag = host.market(docker=settings), new_tag()
    hostile = "$(touch hacked) `id` 'quoted' \"double\" ; & | *"
    start = MachineStart(
        argv=("-c", 'echo "$0"; exec sleep 1000', hostile, "{dir}/agent.json"),
        env={"HOSTILE": hostile, "WHERE": "{dir}"},
        files={"agent.json": b"{}", "deep/er/file": b"\x00\xff"},
        image="vllm/vllm-openai:v0.33",
        shm_mib=1024,
        entrypoint=("sh",),
        cache=True,
        user="2000:0",
    )
    await rent(market, tag, start)
    folder, cache = f"{host.own.docker.folder}/{tag}/files", host.folder / "home" / "broker" / "cache"
    assert host.asked(tag) == [
        *("run", "-d", "--name", tag),
        *("--label", f"broker.tag={tag}", "--label", f"broker.owner={OWNER}", "--label", "broker.price=0.25"),
        *("--network", "host", "--gpus", "all", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864"),
        *("--security-opt", "no-new-privileges", "--user", "2000:0", "--shm-size", "1024m"),
        *("-v", f"{folder}:/broker:ro", "-v", f"{cache}:/cache", "-v", "/models:/models:ro"),
        *("-e", f"HOSTILE={hostile}", "-e", "WHERE=/broker", "-e", f"BROKER_RENTAL_TAG={tag}"),
        *("--entrypoint", "sh", "vllm/vllm-openai:v0.33"),
        *("-c", 'echo "$0"; exec sleep 1000', hostile, "/broker/agent.json"),
    ]
    laid = host.folder / "home" / "broker" / tag / "files"
    assert (laid / "deep/er/file").read_bytes() == b"\x00\xff"
    assert (laid.parent.stat().st_mode & 0o777, laid.stat().st_mode & 0o777) == (0o700, 0o755)
    assert cache.stat().st_mode & 0o7777 == 0o1777, "whoever the image runs as, it can keep weights"
    await market.release(tag)
    assert not laid.exists()
    await market.close()


def test_an_entrypoint_of_several_words_keeps_them_all() -> None:
    start = MachineStart(argv=("run", ""), image="i", entrypoint=("python3", "-u", "x.py"))
    argv = run_argv(Docker(), tag="t", owner="o", price=Decimal(1), start=start, home="/h")
    assert argv[argv.index("--entrypoint") :] == ["--entrypoint", "python3", "i", "-u", "x.py", "run", ""]


async def test_an_image_is_pulled_once_a_host_and_the_agent_is_told_how_long_that_took(host: HostRig) -> None:
    market, pulls = host.market(), []
    for _ in range(2):
        tag = new_tag()
        await rent(market, tag, MachineStart(argv=("1000",), image="registry/engine@sha256:ab", entrypoint=("sleep",)))
        told = host.folder / "home" / "broker" / tag / "files" / "pull.json"
        pulls.append(json.loads(told.read_bytes())["pull_ms"])
        assert told.stat().st_mode & 0o777 == 0o644, "whoever the image runs as, it can read it"
        await market.release(tag)
    assert pulls[0] > 0, "the first time it was pulled"
    assert pulls[1] == 0, "it was there"
    assert (host.docker_state / "pulled").read_text() == "registry/engine@sha256:ab\n"
    await market.close()


@pytest.mark.parametrize(
    ("accelerator", "devices", "asked"),
    [
        (Accelerator("nvidia", "h100", count=8), (), "--gpus all"),
        # docker reads the value as CSV: two devices without the quotes are a device and an unknown option
        (Accelerator("nvidia", "h100", count=2), ("2", "3"), '--gpus "device=2,3"'),
        (Accelerator("amd", "mi300x", count=1), (), "--device=/dev/kfd --device=/dev/dri"),
        (Accelerator("trainium", "trn1", count=2), (), "--device=/dev/neuron0 --device=/dev/neuron1"),
        (Accelerator("tpu", "v5e", count=4), (), "--privileged"),
        (Accelerator("gaudi", "gaudi3", count=8), (), "--runtime=habana"),
        (Accelerator(), (), "--gpus all"),  # the host has some and its owner did not say which
    ],
)
def test_each_kind_of_accelerator_reaches_its_container(
    accelerator: Accelerator, devices: tuple[str, ...], asked: str
) -> None:
    assert " ".join(device_args(accelerator, devices)).startswith(asked)


def test_a_container_without_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an image"):
        run_argv(Docker(), tag="t", owner="o", price=Decimal(1), start=MachineStart(argv=("a",)), home="/h")


async def test_an_accelerator_is_part_of_the_offer(host: HostRig) -> None:
    market = host.market(accelerator=Accelerator("nvidia", "h100-sxm", "sxm", 81_559, 8))
    offer = (await market.offers())[0]
    assert str(offer.key) == "hosts/-/-/host-a/h100-sxm/8/on_demand"
    assert (offer.country, offer.location_tier, offer.evidence[0].kind) == ("DE", "verified_host", "operator_statement")
    await market.close()


# Docker's failures


async def test_when_docker_refuses_nothing_is_left_and_its_words_are_told(host: HostRig) -> None:
    market, tag = host.market(), new_tag()
    trap = host.trap("refuse")
    with pytest.raises(NoCapacity, match="could not select device driver"):
        await rent(market, tag)
    trap.unlink()
    with pytest.raises(RentalNotFound):
        await market.rental(tag)
    await rent(market, tag)  # the same tag is free again
    await market.release(tag)
    await market.close()


async def test_a_stopped_docker_daemon_is_unavailable_and_never_an_empty_list(host: HostRig) -> None:
    market, tag = host.market(), new_tag()
    await rent(market, tag)
    trap = host.trap("down")
    with pytest.raises(PartialList, match="Cannot connect to the Docker daemon"):
        await market.rentals()
    for ask in (market.rental, market.release):
        with pytest.raises(Unavailable):
            await ask(tag)
    offer = (await market.offers())[0]
    assert offer.quarantined is not None and "Cannot connect to the Docker daemon" in offer.quarantined
    trap.unlink()
    assert (await market.rental(tag)).state == "running"
    await market.release(tag)
    await market.close()


async def test_a_container_that_ended_by_itself_keeps_its_record_when_it_is_cleared_away(
    host: HostRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    market, tag = host.market(), new_tag()
    await rent(market, tag, MachineStart(argv=("sh", "-c", "echo last words; exit 3"), image="busybox"))

    async def has_ended() -> bool:
        return (await market.rental(tag)).state == "ended"

    await until_true(has_ended, "it ends")
    before = await market.rental(tag)
    monkeypatch.setattr("markets.hosts.TIDY_AFTER", timedelta(days=-1))
    await market.rentals()
    assert not (host.docker_state / "containers" / tag).exists()
    after = await market.rental(tag)
    assert (after.started_at, after.ended_at, after.end_reason, after.exit_status) == (
        *(before.started_at, before.ended_at),
        *("failed", 3),
    )
    assert (host.folder / "home/broker" / tag / "log.txt").read_text() == "last words\n"
    assert [each.tag for each in await market.rentals()] == [tag]
    await market.close()


async def test_a_release_that_was_cut_off_anywhere_is_finished_by_the_next(host: HostRig) -> None:
    market, tag = host.market(), new_tag()
    await rent(market, tag)
    started = (await market.rental(tag)).started_at
    # killed, and the broker died before it could keep the record
    folder = host.folder / "home/broker" / tag
    (folder / "asked").touch()
    pid = int((host.docker_state / "containers" / tag / "pid").read_text())
    psutil.Process(pid).kill()
    await until(lambda: not processes_of(tag), "it is killed")
    released = await market.release(tag)
    # recorded, and died before the container was removed
    (host.docker_state / f"removed-{tag}").rename(host.docker_state / "containers" / tag)
    assert await market.release(tag) == released
    rental = await market.rental(tag)
    assert (rental.end_reason, rental.exit_status, rental.started_at) == ("released", -9, started)
    await market.close()


# Dying connections


class Partition:
    """A relay to the host whose packets can be held back for ever, like a pulled cable: nothing is closed."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._open.clear()

    def close(self) -> None:
        self._open.set()
        for each in (self._listener, *self._sockets):
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._upstream))
            self._sockets += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=pair, daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while content := source.recv(65536):
                self._open.wait()
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@contextmanager
def partition(host: HostRig) -> Iterator[tuple[Partition, HostRig]]:
    cable = Partition(host.own.target.port)
    own = replace(host.own, target=replace(host.own.target, port=cable.port))
    try:
        yield cable, replace(host, own=own)
    finally:
        cable.close()


async def test_a_connection_that_dies_during_docker_run_is_ambiguous_and_the_tag_tells(host: HostRig) -> None:
    market, tag = host.market(), new_tag()
    trap = host.trap("slow")  # docker starts it and has not answered yet
    renting = asyncio.create_task(rent(market, tag))
    await until(lambda: bool(processes_of(tag)), "docker starts it")
    cut_sessions(host)
    with pytest.raises(Ambiguous):
        await renting
    trap.unlink()
    assert (await market.rental(tag)).state == "running"
    await rent(market, tag)
    assert len([each for each in processes_of(tag) if each.name() == "sleep"]) == 1
    await market.release(tag)
    await market.close()


async def test_a_partition_ends_in_an_error_not_in_waiting_for_ever(host: HostRig) -> None:
    with partition(host) as (cable, behind):
        market = behind.market(timeouts=Timeouts(connect_s=2, command_s=2))

        async def is_connected() -> bool:
            try:
                await market.rentals()
            except PartialList:  # this machine is busy
                return False
            return True

        await until_true(is_connected, "the host answers")
        cable.cut()
        with pytest.raises(PartialList):
            await market.rentals()
        with pytest.raises(Unavailable):
            await market.rental(new_tag())
        await market.close()


async def test_a_connection_that_was_closed_meanwhile_is_made_anew(host: HostRig) -> None:
    market, tag = host.market(), new_tag()
    await rent(market, tag)
    cut_sessions(host)
    assert (await market.rental(tag)).state == "running"
    await market.release(tag)
    await market.close()


async def test_a_host_that_is_down_makes_the_list_partial_and_the_other_still_works(host: HostRig) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and never listens
        target = replace(host.own.target, name="host-b", port=nobody.getsockname()[1])
        hosts = [host.own, replace(host.own, target=target)]
        market, tag = HostsMarket(hosts, authority=host.authority, owner=OWNER), new_tag()
        offers = {each.key.sku: each for each in await market.offers()}
        assert offers["host-a"].quarantined is None
        assert "host-b" in (offers["host-b"].quarantined or "")
        await market.rent(offers["host-a"], intent(tag))
        assert (await market.rental(tag)).state == "running"
        with pytest.raises(PartialList, match="host-b") as partial:
            await market.rentals()
        assert [each.tag for each in partial.value.found] == [tag], "what the other host has is told"
        with pytest.raises(Unavailable, match="host-b"):
            await market.rental(new_tag())  # it could be there
        await market.release(tag)
        await market.close()


async def test_a_release_that_docker_does_not_confirm_is_not_confirmed(host: HostRig) -> None:
    market, tag = host.market(), new_tag()
    await rent(market, tag)
    pid = int((host.docker_state / "containers" / tag / "pid").read_text())
    broken = host.market(docker=replace(host.own.docker, command=str(host.folder / "no-kill")))
    (host.folder / "no-kill").write_text(
        f'#!/bin/sh\n[ "$1" = kill ] && exit 1\n[ "$1" = wait ] && exit 1\nexec {host.own.docker.command} "$@"\n'
    )
    (host.folder / "no-kill").chmod(0o755)
    with pytest.raises(StillReleasing):
        await broken.release(tag)
    assert (await broken.rental(tag)).state == "releasing"
    assert psutil.pid_exists(pid)
    await market.release(tag)
    await broken.close()
    await market.close()


def test_answers_that_are_not_docker_s_are_not_taken_for_an_empty_list() -> None:
    for wrong in ("", "bash: date: command not found", "17\nnot json"):
        with pytest.raises(ValueError):
            containers(wrong, OWNER)
    assert containers("1795348800\n[]\n--- ends\n--- asked\n", OWNER) == []
