"""`agent.pyz guard -- ARGV`: runs the engine so that it cannot outlive the agent.

A process of its own between agent and engine. Its standard input is a pipe whose other end only the agent holds: when
the agent dies, even by SIGKILL, the pipe ends and the guard kills the engine with all that it ever started. The guard
is the subreaper of its descendants, so children that leave the process group or lose their parent are found too; and
should the guard itself be killed, PR_SET_PDEATHSIG takes the engine along. SIGTERM is passed on to the engine. The exit
status is the engine's, 128 + n when signal n ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys

from workers.agent.processes import descendants

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> int:
    """Run `argv` until it ends, or until standard input does."""
    is_linux = sys.platform == "linux"
    if is_linux:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # passed on below; an agent's terminal must not end the engine before it is drained
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard_pid = os.getpid()

    def bind_to_guard() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if is_linux:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard_pid:  # it died before the line above took effect
                os._exit(127)

    try:
        engine = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=bind_to_guard,  # noqa: PLW1509 - the guard has one thread, so this is safe
        )
    except OSError as error:
        print(f"cannot start {argv[0]!r}: {error.strerror}", file=sys.stderr)
        return 127
    try:
        return _watch(engine, woken)
    finally:
        _kill_all(engine.pid)


def _watch(engine: subprocess.Popen[bytes], woken: int) -> int:
    """Wait for the engine's end (its exit status) or the agent's (137)."""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == woken:
                    if signal.SIGTERM in os.read(woken, 4096):
                        engine.terminate()
                elif not os.read(0, 4096):
                    return 128 + signal.SIGKILL
            status = engine.poll()
            if status is not None:
                return status if status >= 0 else 128 - status


def _kill_all(engine_pid: int) -> None:
    """SIGKILL the engine's process group and every descendant, until none is left to be reaped."""
    while True:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or only a zombie is left of it
            os.killpg(engine_pid, signal.SIGKILL)
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, 0)[0]:
                pass
        except ChildProcessError:
            return


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")
