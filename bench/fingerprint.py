"""What machine and what software: enough to refuse a comparison of unlike, and no more.

No user name, host name or path. Read from /proc and /sys (Linux); a figure that cannot be read
is None, never a guess.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.results import Fingerprint

# Flags by which sparse kernels choose their path; the names are those of /proc/cpuinfo.
FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)
PACKAGES = ("sparse-export", "numpy", "scipy", "onnx", "onnxruntime", "torch", "transformers")


def fingerprint(packages: Sequence[str] = PACKAGES) -> Fingerprint:
    """The machine as it is now."""
    model, flags = read_cpuinfo(_text(Path("/proc/cpuinfo")) or "")
    return Fingerprint(
        cpu=model or platform.machine(),
        cpu_flags={f: f in flags for f in FLAGS},
        cores_usable=_usable_cores(),
        cores_total=os.cpu_count() or 1,
        memory_bytes=read_meminfo(_text(Path("/proc/meminfo")) or ""),
        load_at_start=_load(),
        governor=_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages={name: found for name in packages if (found := _version(name))},
    )


def read_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Model name and flags of the first core."""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    name = model.group(1).strip() if model else ""
    return name, frozenset(flags.group(1).split()) if flags else frozenset()


def read_meminfo(text: str) -> int | None:
    """Bytes of main memory."""
    found = re.search(r"^MemTotal:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
