"""The user data of a machine: a cloud-init document that starts the agent in the engine's image. Pure.

Whoever is on the machine can read it, so it holds no secret but the rental's single-use token. Two systemd units run what
it lays out in /var/lib/broker: `broker-worker` (docker, the agent by its sha256 from the broker, the image by its digest,
one container; whatever ends it powers the machine off, which terminates it) and `broker-dead-man`, a timer that powers the
machine off once the broker has not answered for too long, or the boot has stopped somewhere.

Judged by cloud-init's own schema tool and by shellcheck. The default image is AWS's Deep Learning Base AMI, which has the
NVIDIA driver, docker and the NVIDIA container toolkit; unverified against the live service.
"""

from __future__ import annotations

import shlex
from decimal import Decimal
from typing import Any

import yaml

from markets.aws.launch import USER_DATA_BYTES
from markets.docker_run import Docker, pull_script, run_argv
from markets.market import MachineStart
from markets.offer import Accelerator

HOME = "/var/lib/broker"
STATE = f"{HOME}/state"
CACHE = f"{HOME}/cache"
# One try at the image (10 GB) may take this long, and is one step of the boot: the outer switch is not quicker.
_PULL_S = 900
_MARGIN_S = 300
_UNITS = "/etc/systemd/system"


def user_data(start: MachineStart, *, tag: str, owner: str, price: Decimal, accelerator: Accelerator) -> str:
    """The document for `start`. Raises ValueError when EC2 would not take it: without an image, or above 16 kB."""
    content = _document(start, tag=tag, owner=owner, price=price, accelerator=accelerator)
    document = "#cloud-config\n" + yaml.dump(content, Dumper=_Readable, sort_keys=False, width=1_000_000)
    if len(document.encode()) > USER_DATA_BYTES:
        raise ValueError(f"rental {tag}: user data of {len(document.encode())} bytes; EC2 takes {USER_DATA_BYTES}")
    return document


def _document(start: MachineStart, *, tag: str, owner: str, price: Decimal, accelerator: Accelerator) -> dict[str, Any]:
    script = worker_script(start, tag=tag, owner=owner, price=price, accelerator=accelerator)
    files = [_file(f"{HOME}/{tag}/files/{name}", content.decode(), "0644") for name, content in start.files.items()]
    for name, download in start.downloads.items():
        # a file, so that the token is not among the arguments that every process of the machine can read
        files.append(_file(f"{HOME}/{name}.header", f"Authorization: Bearer {download.bearer}\n", "0600"))
        if download.ca is not None:
            files.append(_file(f"{HOME}/{name}.ca", download.ca, "0644"))
    files += [
        _file(f"{HOME}/worker.sh", script, "0700"),
        _file(f"{_UNITS}/broker-worker.service", _WORKER_UNIT, "0644"),
    ]
    commands = [["mkdir", "-p", STATE, CACHE], ["touch", f"{STATE}/alive"], ["systemctl", "daemon-reload"]]
    if start.dead_man_s > 0:
        files += [
            _file(f"{HOME}/dead_man.sh", dead_man_script(start.dead_man_s), "0700"),
            _file(f"{_UNITS}/broker-dead-man.service", _DEAD_MAN_UNIT, "0644"),
            _file(f"{_UNITS}/broker-dead-man.timer", _DEAD_MAN_TIMER, "0644"),
        ]
        commands.append(["systemctl", "enable", "--now", "broker-dead-man.timer"])
    commands.append(["systemctl", "start", "--no-block", "broker-worker.service"])
    return {"write_files": files, "runcmd": commands}


def worker_script(start: MachineStart, *, tag: str, owner: str, price: Decimal, accelerator: Accelerator) -> str:
    """POSIX shell: prepare, fetch, pull, run, and power off whatever happened."""
    image, gpus = shlex.quote(start.image or ""), accelerator.count > 0
    docker = Docker(gpus=gpus, network="host", volumes=(f"{STATE}:/state",))
    command = run_argv(
        docker, tag=tag, owner=owner, price=price, start=start, home=HOME, accelerator=accelerator if gpus else None
    )
    # its own failures are silent, because on a host `docker run` would say them: here they are another try
    pull = f"{pull_script(docker, tag=tag, start=start, home=HOME)}\ndocker image inspect {image} >/dev/null"
    fetches = "\n".join(
        f"fetch {shlex.quote(download.url)} {shlex.quote(name)} {shlex.quote(download.sha256)}"
        for name, download in start.downloads.items()
    )
    return _WORKER.format(
        home=HOME,
        files=shlex.quote(f"{HOME}/{tag}/files"),
        gpus="gpus" if gpus else ":",
        fetches=fetches,
        run=" ".join(shlex.quote(part) for part in command),
        tag=shlex.quote(tag),
        pull=shlex.quote(pull),
        pull_s=_PULL_S,
    )


def dead_man_script(dead_man_s: int) -> str:
    """POSIX shell, run every minute: power off once `state/alive` has not been touched for too long."""
    return _DEAD_MAN.format(state=STATE, limit_s=max(dead_man_s, _PULL_S) + _MARGIN_S)


class _Readable(yaml.SafeDumper):
    """Scripts as blocks of lines: a person who looks at a machine's user data can read them."""


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _file(path: str, content: str, permissions: str) -> dict[str, str]:
    return {"path": path, "permissions": permissions, "content": content}


_WORKER = """\
#!/bin/sh
# Runs the worker of one rental. However it ends, the machine is powered off, and EC2 terminates it.
set -eu
cd {home}

off() {{
  status=$?
  echo "broker: the worker ended with status $status"
  sync
  systemctl poweroff || shutdown -h now
}}
trap off EXIT

alive() {{ touch state/alive; }}

again() {{ # seconds, command and arguments: three tries
  limit=$1; shift
  for pause in 5 20 0; do
    alive
    timeout "$limit" "$@" && return 0
    echo "broker: failed: $1"
    sleep "$pause"
  done
  return 1
}}

fetch() {{ # url, name, sha256
  url=$1 name=$2 sha256=$3
  set --
  if [ -e "$name.ca" ]; then # the broker's own, beside the system's
    cat /etc/ssl/certs/ca-certificates.crt "$name.ca" >"$name.cas" || cp "$name.ca" "$name.cas"
    set -- --cacert "$name.cas"
  fi
  again 600 curl -fsS --retry 20 --retry-delay 3 --retry-connrefused "$@" -H "@$name.header" -o "$name.new" "$url"
  echo "$sha256  $name.new" | sha256sum -c -
  mv "$name.new" {files}/"$name"
  chmod 644 {files}/"$name"
  rm -f "$name.header"
}}

gpus() {{
  nvidia-smi -L || {{ echo "broker: no NVIDIA driver; use an AMI that has one"; exit 1; }}
  command -v nvidia-ctk >/dev/null || {{ echo "broker: no NVIDIA container toolkit; use an AMI that has it"; exit 1; }}
  docker info --format '{{{{json .Runtimes}}}}' | grep -q nvidia || {{
    nvidia-ctk runtime configure --runtime=docker
    systemctl restart docker
  }}
}}

mkdir -p state cache
chmod 1777 state # the image's user may be any
alive
if ! command -v docker >/dev/null; then
  again 600 apt-get update -q
  again 600 env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends docker.io
fi
systemctl start docker
if [ -d /opt/dlami/nvme ] && [ ! -L cache ]; then # local disks of the Deep Learning AMI: larger, faster, encrypted
  mkdir -p /opt/dlami/nvme/broker && rmdir cache && ln -s /opt/dlami/nvme/broker cache
fi
{gpus}
{fetches}
again {pull_s} sh -c {pull}
alive
{run}
status=$(docker wait {tag})
docker logs --tail 50 {tag} 2>&1
exit "$status"
"""

_DEAD_MAN = """\
#!/bin/sh
# Ends a machine that nobody hears of: `alive` is touched at each step of the boot, then while the broker answers.
set -u
now=$(date +%s)
last=$(stat -c %Y {state}/alive 2>/dev/null || echo 0)
age=$((now - last))
if [ "$age" -gt {limit_s} ]; then
  echo "broker: nothing heard for $age s"
  systemctl poweroff || shutdown -h now
fi
"""

_WORKER_UNIT = f"""\
[Unit]
Description=Worker of the compute broker
After=network-online.target docker.service
Wants=network-online.target

[Service]
Type=exec
ExecStart={HOME}/worker.sh
StandardOutput=journal+console
StandardError=journal+console
"""

_DEAD_MAN_UNIT = f"""\
[Unit]
Description=Power off when the broker has not answered for too long

[Service]
Type=oneshot
ExecStart={HOME}/dead_man.sh
StandardOutput=journal+console
"""

_DEAD_MAN_TIMER = """\
[Unit]
Description=Look every minute whether the broker still answers

[Timer]
OnBootSec=60
OnUnitActiveSec=60

[Install]
WantedBy=timers.target
"""
