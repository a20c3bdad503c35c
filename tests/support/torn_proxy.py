"""A TCP proxy on loopback that tears connections: each of its first ones after so many bytes, later ones never."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence


class TornProxy:
    """`url` forwards to a broker. Connection number n is torn when `cuts[n]` bytes have gone `upwards` (else down)."""

    def __init__(self, target: tuple[str, int], cuts: Sequence[int], *, upwards: bool) -> None:
        self._target, self._cuts, self._upwards = target, list(cuts), upwards
        self._server = socket.create_server(("127.0.0.1", 0))
        self.torn = 0
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return  # closed
            broker = socket.create_connection(self._target)
            cut = self._cuts.pop(0) if self._cuts else None
            up, down = (cut, None) if self._upwards else (None, cut)
            for source, sink, limit in ((client, broker, up), (broker, client, down)):
                threading.Thread(target=self._copy, args=(source, sink, limit), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        gone = 0
        with contextlib.suppress(OSError):  # the other direction has torn or ended it
            while chunk := source.recv(65536):
                left = None if limit is None else limit - gone
                gone += len(chunk)
                if left is not None and len(chunk) > left:
                    sink.sendall(
                        chunk[:left]
                    )  # exactly so many bytes, however they were put together on their way here
                    self.torn += 1
                    break
                sink.sendall(chunk)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes the other direction
                each.close()  # or a sender that waits to be read would never hear of it


@contextlib.contextmanager
def torn_proxy(url: str, cuts: Sequence[int], *, upwards: bool) -> Iterator[TornProxy]:
    host, _, port = url.removeprefix("http://").partition(":")
    proxy = TornProxy((host, int(port)), cuts, upwards=upwards)
    try:
        yield proxy
    finally:
        proxy.close()
