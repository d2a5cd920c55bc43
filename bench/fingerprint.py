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
from typing import Any

from bench.ceiling import read_bytes_per_second
from bench.meters import nvml_devices
from bench.parts import Fingerprint, Gpu

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


_CPU = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def fingerprint(packages: Sequence[str] = PACKAGES, *, ceiling: bool = False) -> Fingerprint:
    """The machine as it is now; `ceiling`: measure how fast it reads memory, too."""
    model, flags = read_cpuinfo(_text(Path("/proc/cpuinfo")) or "")
    return Fingerprint(
        cpu=model or platform.machine(),
        cpu_flags={f: f in flags for f in FLAGS},
        cores_usable=_usable_cores(),
        cores_total=os.cpu_count() or 1,
        memory_bytes=read_meminfo(_text(Path("/proc/meminfo")) or ""),
        load_at_start=_load(),
        governor=_text(_CPU / "cpu0/cpufreq/scaling_governor"),
        microcode=read_microcode(_text(Path("/proc/cpuinfo")) or ""),
        turbo=read_turbo(_CPU),
        smt=_switch(_CPU / "smt/active"),
        cpu_quota=read_quota(_text(_CGROUP / "cpu.max")),
        memory_limit=_number(_text(_CGROUP / "memory.max")),
        temperature=read_temperature(Path("/sys/class/thermal")),
        read_bytes_per_second=read_bytes_per_second() if ceiling else None,
        gpus=read_gpus(),
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


def read_microcode(text: str) -> str | None:
    """Revision of the first core's microcode."""
    found = re.search(r"^microcode\s*:\s*(\S+)$", text, re.MULTILINE)
    return found.group(1) if found else None


def read_turbo(cpu: Path) -> bool | None:
    """Whether clocks may rise above nominal: intel_pstate says no_turbo, others boost."""
    held = _switch(cpu / "intel_pstate/no_turbo")
    return not held if held is not None else _switch(cpu / "cpufreq/boost")


def read_quota(text: str | None) -> float | None:
    """Cores of cgroup v2's cpu.max, "QUOTA PERIOD"; None for "max"."""
    parts = (text or "").split()
    if len(parts) != 2 or not all(p.isdecimal() for p in parts):
        return None
    return int(parts[0]) / int(parts[1])


def read_temperature(zones: Path) -> float | None:
    """The hottest thermal zone in Celsius."""
    found = [n for z in zones.glob("thermal_zone*/temp") if (n := _number(_text(z))) is not None]
    return max(found) / 1000 if found else None


def read_gpus() -> list[Gpu]:
    """Each GPU that nvidia-ml-py finds; none without it."""
    return [_gpu(nvml, device) for nvml, device in nvml_devices()]


def _gpu(nvml: Any, device: Any) -> Gpu:
    def ask(name: str, *args: Any) -> Any:
        try:
            return getattr(nvml, name)(device, *args)
        except Exception:  # noqa: BLE001 - a figure this GPU does not tell
            return None

    ecc, reasons = ask("nvmlDeviceGetEccMode"), ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    idle = getattr(nvml, "nvmlClocksThrottleReasonGpuIdle", 1)
    return Gpu(
        name=str(ask("nvmlDeviceGetName")),
        driver=str(nvml.nvmlSystemGetDriverVersion()),
        memory_bytes=int(getattr(ask("nvmlDeviceGetMemoryInfo"), "total", 0)),
        clock_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        max_clock_mhz=ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
        ecc=None if ecc is None else bool(ecc[0]),
        throttled=None if reasons is None else bool(reasons & ~idle),
    )


def _switch(path: Path) -> bool | None:
    return {"1": True, "0": False}.get(_text(path) or "")


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


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
