"""Processes below another one, and whether one of them listens at a port. From /proc; where there is none, nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_LISTEN = "0A"


def descendants(root: int) -> list[int]:
    """Process ids below `root`; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            # the name in parentheses may hold anything, even ')': what follows the last one is regular
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
    found: list[int] = []
    left = [root]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def is_anothers(port: int, root: int) -> bool:
    """Whether somebody else than the processes below `root` listens at this TCP port of our network.

    Only what is certain counts: False as well where the system lists no sockets, or hides those of one of the processes.
    """
    listening = _listening(port)
    if not listening:
        return False
    held = [_sockets(pid) for pid in descendants(root)]
    return None not in held and not any(listening & each for each in held if each)


def _listening(port: int) -> set[str]:
    """Inodes of the sockets that listen there, as /proc/net/tcp has them (proc(5): local address, state, tenth field)."""
    found = set[str]()
    for name in ("tcp", "tcp6"):
        try:
            rows = (_PROC / "self" / "net" / name).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, rows):
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def _sockets(pid: int) -> set[str] | None:
    """Inodes of the sockets that a process has open; None where they are hidden from us."""
    try:
        links = list((_PROC / str(pid) / "fd").iterdir())
    except PermissionError:
        return None
    except OSError:  # it has ended
        return set()
    return set(_inodes(links))


def _inodes(links: Iterable[Path]) -> Iterable[str]:
    for link in links:
        try:
            target = str(link.readlink())
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            yield target[len("socket:[") : -1]
