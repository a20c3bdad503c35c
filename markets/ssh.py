"""SSH to own hosts: the host's key is pinned, ours lives for minutes, and nothing waits for ever.

Each connection logs in with a fresh Ed25519 key that carries an OpenSSH user certificate, signed by the broker's own
authority and valid for five minutes. A host trusts the authority by one line (`Authority.trust_line`), so that no
private key of a user lies about anywhere. paramiko blocks: all of this runs in the caller's thread pool.
"""

from __future__ import annotations

import base64
import contextlib
import io
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import paramiko
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import SSHCertificateBuilder, SSHCertificateType
from paramiko.pkey import UnknownKeyType

from markets.errors import NotAuthorized, Unavailable

VALID_S = 300
SKEW_S = 60
_LOOK_S = 0.005

_log = structlog.get_logger("markets.ssh")


class Broken(Exception):
    """The connection died or timed out after the command was sent: it may have run, or may still run."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `run_s` is for what may pull an image first."""

    connect_s: float = 10
    command_s: float = 20
    run_s: float = 600


@dataclass(frozen=True, slots=True)
class Target:
    """Where to log in. `host_key` is the pinned key as in known_hosts, without the name: `ssh-ed25519 AAAA…`."""

    name: str
    address: str
    port: int
    user: str
    host_key: str


@dataclass(frozen=True, slots=True)
class Completed:
    """A command's exit status and what it wrote."""

    status: int
    out: str
    err: str


class Authority:
    """The broker's SSH certificate authority. `private_key` is OpenSSH PEM of an Ed25519 key (`new_authority_key`)."""

    def __init__(self, private_key: bytes) -> None:
        key = serialization.load_ssh_private_key(private_key, password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("the SSH authority's key is not Ed25519; make one with new_authority_key()")
        self._key = key

    @property
    def public_line(self) -> str:
        """The authority's public key, `ssh-ed25519 AAAA…`."""
        public = self._key.public_key()
        return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()

    @property
    def trust_line(self) -> str:
        """What a host's `~/.ssh/authorized_keys` needs, once: logins with our certificates, no forwarding, no terminal."""
        return f"cert-authority,restrict {self.public_line} broker"

    def login_key(self, user: str, now_s: int) -> paramiko.PKey:
        """A fresh key with a certificate for `user`, valid from `now_s` for five minutes (and a minute of skew before)."""
        own = Ed25519PrivateKey.generate()
        certificate = (
            SSHCertificateBuilder()
            .public_key(own.public_key())
            .serial(secrets.randbits(63))
            .type(SSHCertificateType.USER)
            .key_id(b"broker")
            .valid_principals([user.encode()])
            .valid_after(now_s - SKEW_S)
            .valid_before(now_s + VALID_S)
            .sign(self._key)
        )
        private = own.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        key = paramiko.Ed25519Key(file_obj=io.StringIO(private.decode()))
        key.load_certificate(certificate.public_bytes().decode())
        return key


def new_authority_key() -> bytes:
    """A private key for an `Authority`, to be kept in the broker's data folder, readable by nobody else."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


class Connection:
    """One host. Commands of several threads share one connection; a failed one is thrown away and made anew."""

    def __init__(self, target: Target, authority: Authority, timeouts: Timeouts) -> None:
        self._target = target
        self._authority = authority
        self._timeouts = timeouts
        self._host_key = parse_host_key(target.host_key)
        self._connecting = threading.Lock()
        self._client: paramiko.SSHClient | None = None

    def run(self, script: str, *, timeout_s: float | None = None) -> Completed:
        """Run `script` with the user's shell. Unavailable: it was never sent. Broken: it may have run. NotAuthorized."""
        timeout_s = timeout_s or self._timeouts.command_s
        channel = self._channel()
        try:
            channel.exec_command(script)
            return _completed(channel, timeout_s)
        except (paramiko.SSHException, OSError, EOFError) as error:  # TimeoutError is an OSError
            self._drop()
            raise Broken(f"host {self._target.name}: the connection died during a command ({error!r})") from error
        finally:
            channel.close()

    def put(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Write `files` (relative names) below the existing `folder`. Raises Unavailable; ValueError for other names."""
        with self._sftp() as sftp:
            for parent in sorted({parent for name in files for parent in _parents(name)}):
                with contextlib.suppress(OSError):  # it is there; if not, writing below it says so
                    sftp.mkdir(f"{folder}/{parent}")
            for name, content in sorted(files.items()):
                with sftp.open(f"{folder}/{name}", "wb") as file:
                    file.write(content)

    def close(self) -> None:
        self._drop()

    @contextlib.contextmanager
    def _sftp(self) -> Iterator[paramiko.SFTPClient]:
        try:
            channel = self._channel()
            channel.invoke_subsystem("sftp")
            sftp = paramiko.SFTPClient(channel)
            try:
                yield sftp
            finally:
                sftp.close()
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._drop()
            raise Unavailable(f"host {self._target.name}: files cannot be written ({error!r})") from error

    def _channel(self) -> paramiko.Channel:
        """A channel on the shared connection. A connection that died unnoticed is made anew once: nothing was sent yet."""
        for again in (True, False):
            client = self._connected()
            transport = client.get_transport()
            try:
                if transport is None:
                    raise paramiko.SSHException("no transport")
                channel = transport.open_session(timeout=self._timeouts.connect_s)
                channel.settimeout(self._timeouts.command_s)
                return channel
            except (paramiko.SSHException, OSError, EOFError) as error:
                self._drop(client)
                if not again:
                    raise Unavailable(f"host {self._target.name}: no channel ({error!r})") from error
        raise AssertionError("the loop returns or raises")

    def _connected(self) -> paramiko.SSHClient:
        with self._connecting:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> paramiko.SSHClient:
        target, timeout_s = self._target, self._timeouts.connect_s
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(_OnlyThePinnedKey(self._host_key))
        known_as = target.address if target.port == 22 else f"[{target.address}]:{target.port}"
        client.get_host_keys().add(known_as, self._host_key.get_name(), self._host_key)
        try:
            client.connect(
                target.address,
                port=target.port,
                username=target.user,
                pkey=self._authority.login_key(target.user, int(time.time())),
                allow_agent=False,
                look_for_keys=False,
                timeout=timeout_s,
                banner_timeout=timeout_s,
                auth_timeout=timeout_s,
                channel_timeout=timeout_s,
            )
        except paramiko.BadHostKeyException as error:
            client.close()
            raise NotAuthorized(
                f"host {target.name} ({target.address}:{target.port}) shows the key {error.key.get_name()} "
                f"{error.key.get_base64()}, not the pinned one; if it was really reinstalled, pin its new key"
            ) from error
        except paramiko.AuthenticationException as error:
            client.close()
            raise NotAuthorized(
                f"host {target.name} refuses our certificate for {target.user}; its authorized_keys needs: "
                f"{self._authority.trust_line}"
            ) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            client.close()
            where = f"host {target.name} ({target.address}:{target.port})"
            raise Unavailable(f"{where} cannot be reached: {error}") from error
        _log.info("ssh.connected", host=target.name)
        transport = client.get_transport()
        if transport is not None:
            transport.set_keepalive(15)
        return client

    def _drop(self, client: paramiko.SSHClient | None = None) -> None:
        """Throw the connection away (only `client`, if given: another thread may have made a new one)."""
        with self._connecting:
            if self._client is not None and client in (None, self._client):
                self._client.close()
                self._client = None


class _OnlyThePinnedKey(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """A host that shows a key of another type than the pinned one is as wrong as one with another key."""

    def __init__(self, pinned: paramiko.PKey) -> None:
        self._pinned = pinned

    def missing_host_key(self, _client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise paramiko.BadHostKeyException(hostname, key, self._pinned)


def parse_host_key(line: str) -> paramiko.PKey:
    """The key in `ssh-ed25519 AAAA…`. Raises ValueError saying what is wrong with it."""
    parts = line.split()
    try:
        return paramiko.PKey.from_type_string(parts[0], base64.b64decode(parts[1], validate=True))
    except (IndexError, ValueError, paramiko.SSHException, UnknownKeyType) as error:
        raise ValueError(f"host key {line!r}: {error}; give it as ssh-keyscan prints it, without the name") from error


def _completed(channel: paramiko.Channel, timeout_s: float) -> Completed:
    """Read to the end. A partition leaves the transport `active` for ever, so a deadline of our own decides."""
    deadline = time.monotonic() + timeout_s
    out, err = bytearray(), bytearray()
    while True:
        # closed: also when the connection died; exit_status_ready() would then be true without a status
        ended = channel.closed or (channel.status_event.is_set() and channel.eof_received)
        while channel.recv_ready():
            out += channel.recv(65536)
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(65536)
        if ended:
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"no end within {timeout_s} s")
        time.sleep(_LOOK_S)
    if channel.exit_status < 0:
        raise EOFError("it ended without an exit status")
    return Completed(channel.exit_status, out.decode(errors="replace"), err.decode(errors="replace"))


def _parents(name: str) -> list[str]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file {name!r} lies outside of the machine's folder; give a relative name")
    return [str(parent) for parent in reversed(path.parents) if str(parent) != "."]
