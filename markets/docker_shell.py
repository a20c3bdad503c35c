"""Docker on a host as shell scripts and what they print: what runs there, how it is started, how it is ended.

A host needs a POSIX shell, `find` and the docker command, nothing of ours. On the host, FOLDER/<tag>/ has `files/`
(mounted read-only at /broker), `asked` once we asked for the end, and `end.json` (docker's last word on the container)
before the container itself is removed: the metered end is never lost with it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from markets.docker_run import Docker, pull_script, run_argv
from markets.market import EndReason, MachineStart, RentalState
from markets.offer import Accelerator

NOT_THERE = 44
NAME_TAKEN = 45
REFUSED = 46
UNCLEAN = 47
_ENDS = "--- ends"
_ASKED = "--- asked"
_LISTED_MINUTES = 120
_NEVER = datetime(1, 1, 1, tzinfo=UTC)  # docker's zero time


@dataclass(frozen=True, slots=True)
class Container:
    """One container of ours as docker told it. `seen_at` is the host's clock, to the second, rounded down."""

    tag: str
    owner: str
    price: Decimal
    id: str
    status: str
    pid: int
    started_at: datetime | None
    ended_at: datetime | None
    exit_status: int | None
    asked: bool
    removed: bool
    error: str
    seen_at: datetime

    @property
    def state(self) -> RentalState:
        if self.ended_at is not None:
            return "ended"
        if self.asked:
            return "releasing"
        return "pending" if self.status == "created" else "running"

    @property
    def end_reason(self) -> EndReason | None:
        if self.ended_at is None:
            return None
        if self.asked:
            return "released"
        return "exited" if self.exit_status == 0 else "failed"


@dataclass(frozen=True, slots=True)
class Room:
    """What a host says before something is rented there."""

    home: str
    live: int
    there: bool


def room_script(docker: Docker, tag: str | None) -> str:
    """Count what lives on the host; with a tag, also make its folder and see whether the tag is taken."""
    command, folder = shlex.quote(docker.command), shlex.quote(docker.folder)
    lines = [f"umask 077; mkdir -p {folder} && cd {folder} && pwd || exit 1"]
    lines += [f"live=$({command} ps -q --filter label=broker.tag) || exit 1", "echo $live | wc -w"]
    if tag is not None:
        name = shlex.quote(tag)
        lines += [f"there=$({command} ps -aq --filter label=broker.tag={name}) || exit 1"]
        lines += [f'if [ -n "$there" ] || [ -s {name}/end.json ]; then echo there; fi']
        # The container's user may be any and must read them; the folder above keeps the host's other users out.
        lines += [f"mkdir -p {name}/files && chmod 755 {name}/files"]
    return "\n".join(lines)


def room(out: str) -> Room:
    """Read what `room_script` printed."""
    home, live, *there = out.split("\n")
    return Room(home=home, live=int(live), there="there" in there)


def run_script(
    docker: Docker,
    *,
    tag: str,
    owner: str,
    price: Decimal,
    start: MachineStart,
    home: str,
    accelerator: Accelerator | None = None,
) -> str:
    """Pull the image where it is missing, start the container.

    Exits with NAME_TAKEN, REFUSED (and nothing is left) or UNCLEAN (something may be).

    Raises ValueError without an image.
    """
    asked = run_argv(docker, tag=tag, owner=owner, price=price, start=start, home=home, accelerator=accelerator)
    argv = shlex.join(asked)
    command, name = shlex.quote(docker.command), shlex.quote(tag)
    return f"""
{pull_script(docker, tag=tag, start=start, home=home)}
out=$({argv} 2>&1) && exit 0
case "$out" in *"ontainer name"*"already in use"*) exit {NAME_TAKEN};; esac
echo "$out" >&2
{command} rm -f {name} >/dev/null 2>&1
left=$({command} ps -aq --filter label=broker.tag={name}) && [ -z "$left" ] || exit {UNCLEAN}
exit {REFUSED}
"""


def list_script(docker: Docker, owner: str, *, tag: str | None = None, all_ends: bool = False) -> str:
    """All containers of `owner` (or one tag), and the records of ended ones: two hours back, or all."""
    command, folder = shlex.quote(docker.command), shlex.quote(docker.folder)
    filters = f"--filter label=broker.owner={shlex.quote(owner)}"
    find = "find . -mindepth 2 -maxdepth 2"
    if tag is not None:
        filters += f" --filter label=broker.tag={shlex.quote(tag)}"
        find += f" -path {shlex.quote(f'./{tag}/*')}"
    recent = "" if tag is not None or all_ends else f" -mmin -{_LISTED_MINUTES}"
    return f"""
umask 077; mkdir -p {folder} && cd {folder} && date +%s || exit 1
ids=$({command} ps -aq --no-trunc {filters}) || exit 1
if [ -n "$ids" ]; then {command} inspect $ids || exit 1; else echo '[]'; fi
echo '{_ENDS}'
{find} -name end.json{recent} -exec cat {{}} \\; || exit 1
echo '{_ASKED}'
{find} -name asked || exit 1
"""


def containers(out: str, owner: str) -> list[Container]:
    """Read what `list_script` printed. Raises ValueError when it is not that."""
    clock, _, rest = out.partition("\n")
    present, _, rest = rest.partition(_ENDS)
    ends, _, asked_paths = rest.partition(_ASKED)
    seen_at = datetime.fromtimestamp(int(clock), UTC)
    asked = {path.split("/")[1] for path in asked_paths.split()}
    found: dict[str, Container] = {}
    for text, removed in ((present, False), (ends, True)):  # the record is the last word, also when both are there
        for inspected in _arrays(text):
            container = _container(inspected, asked, seen_at, removed=removed)
            if container.owner == owner:
                found[container.tag] = container
    return list(found.values())


def end_script(docker: Docker, tag: str) -> str:
    """Kill, wait until docker says that it is over, keep its last word, remove it. Again after a crash at any line.

    Exits with NOT_THERE when the host never had the tag, with 1 when docker does not do it.
    """
    command, folder, name = shlex.quote(docker.command), shlex.quote(docker.folder), shlex.quote(tag)
    of_tag = f"{command} ps -aq --no-trunc --filter label=broker.tag={name}"
    return f"""
umask 077; cd {folder}/{name} 2>/dev/null || exit {NOT_THERE}
if [ ! -s end.json ]; then
  id=$({of_tag}) || exit 1
  [ -n "$id" ] || exit {NOT_THERE}
  if [ "$({command} inspect -f '{{{{.State.Running}}}}' "$id")" = true ]; then
    touch asked; {command} kill "$id" >/dev/null 2>&1
  fi
  {command} wait "$id" >/dev/null || exit 1
  {command} logs --tail 200 "$id" >log.txt 2>&1
  {command} inspect "$id" >end.new && mv end.new end.json || exit 1
fi
{command} rm -f {name} >/dev/null 2>&1
left=$({of_tag}) && [ -z "$left" ] || exit 1
rm -rf files
"""


def _arrays(text: str) -> Iterator[Mapping[str, Any]]:
    """The objects of several JSON arrays, one after another."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        array, end = decoder.raw_decode(text)
        yield from array
        text = text[end:].lstrip()


def _container(inspected: Mapping[str, Any], asked: Set[str], seen_at: datetime, *, removed: bool) -> Container:
    state, labels = inspected["State"], inspected["Config"]["Labels"]
    started_at = _time(state["StartedAt"])
    over = state["Status"] in ("exited", "dead", "removing")
    ended_at = (_time(state["FinishedAt"]) or _time(inspected["Created"])) if over or removed else None
    tag = labels["broker.tag"]
    return Container(
        tag=tag,
        owner=labels["broker.owner"],
        price=Decimal(labels["broker.price"]),
        id=inspected["Id"],
        status=state["Status"],
        pid=state["Pid"],
        started_at=started_at,
        ended_at=ended_at,
        exit_status=_exit_status(state["ExitCode"]) if ended_at else None,
        asked=tag in asked,
        removed=removed,
        error=state.get("Error", ""),
        seen_at=max(seen_at, started_at) if started_at else seen_at,
    )


def _exit_status(code: int) -> int:
    """Docker says 128 + n for signal n, as a shell does; we say -n, as a parent does."""
    return 128 - code if 128 < code <= 192 else code


def _time(text: str) -> datetime | None:
    moment = datetime.fromisoformat(text)
    return None if moment <= _NEVER else moment.astimezone(UTC)
