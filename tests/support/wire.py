"""A TCP forwarder between two parties, which can reset their connections; with several targets a load balancer."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Sequence

HEALTH_S = 0.3
PATIENCE_S = 4.0
LOOPBACK = "127.0.0.1"
MISSES = 2

Address = tuple[str, int]


class Wire:
    """`port` of `host` forwards to one of `targets`, in turn; with `health` only to those whose path of this name answers.

    `tear` is what a rebooted router does: all connections are reset, new ones work.
    """

    def __init__(self, targets: Sequence[Address], *, host: str = LOOPBACK, health: str | None = None) -> None:
        self._targets, self._health = tuple(targets), health
        self._alive = set(self._targets)
        self._turn = 0
        self._closed = threading.Event()
        self._open: dict[socket.socket, Address] = {}
        self._server = socket.create_server((host, 0), backlog=256)
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()
        if health is not None:
            threading.Thread(target=self._look_after, daemon=True).start()

    def tear(self, target: Address | None = None) -> None:
        for each, of in list(self._open.items()):
            if target in (None, of):
                _shut(each)

    def close(self) -> None:
        self._closed.set()
        self._server.close()
        self.tear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        for _ in self._targets:
            self._turn += 1
            target = self._targets[self._turn % len(self._targets)]
            if target not in self._alive:
                continue
            with contextlib.suppress(OSError):
                far = socket.create_connection(target, timeout=PATIENCE_S)
                far.settimeout(None)
                self._open |= {client: target, far: target}
                threading.Thread(target=self._copy, args=(client, far), daemon=True).start()
                self._copy(far, client)
                return
        _shut(client)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the other direction has ended it
            while chunk := source.recv(65536):
                sink.sendall(chunk)
        for each in (source, sink):
            self._open.pop(each, None)
            _shut(each)

    def _look_after(self) -> None:
        """Who has not answered for its health several times gets no more connections, and loses those that it has."""
        missed = dict.fromkeys(self._targets, 0)
        while not self._closed.wait(HEALTH_S):
            for target in self._targets:
                host, port = target
                try:
                    urllib.request.urlopen(f"http://{host}:{port}{self._health}", timeout=PATIENCE_S).close()
                    self._alive.add(target)
                    missed[target] = 0
                except (OSError, ValueError):
                    missed[target] += 1
                    if missed[target] >= MISSES:
                        self._alive.discard(target)
                        self.tear(target)


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
