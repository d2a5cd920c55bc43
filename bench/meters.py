"""Energy and GPU memory, where the machine has meters that may be read; None where not.

RAPL: Linux's powercap (Documentation/power/powercap), packages only, as their parts lie inside.
NVML: through nvidia-ml-py where it is installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_POWERCAP = Path("/sys/class/powercap")


def energy_meter(root: Path = _POWERCAP) -> Callable[[], float] | None:
    """A function that gives joules so far, of all packages and GPUs; None where none is read."""
    zones = [z for z in sorted(root.glob("intel-rapl:*")) if z.name.count(":") == 1]
    zones = [z for z in zones if _number(z / "energy_uj") is not None]
    devices = nvml_devices()
    if not zones and not devices:
        return None
    return _Meter(zones, devices).joules


class _Meter:
    """Counters that begin anew at their end, added up from one reading to the next."""

    def __init__(self, zones: list[Path], devices: list[tuple[Any, Any]]) -> None:
        self._zones = {zone: (_number(zone / "energy_uj") or 0) for zone in zones}
        self._devices = devices
        self._total = 0

    def joules(self) -> float:
        for zone, before in self._zones.items():
            now = _number(zone / "energy_uj") or before
            turn = _number(zone / "max_energy_range_uj") or 0
            self._total += now - before if now >= before else now - before + turn
            self._zones[zone] = now
        gpu = sum(nvml.nvmlDeviceGetTotalEnergyConsumption(d) for nvml, d in self._devices)
        return self._total * 1e-6 + gpu * 1e-3


def nvml_devices() -> list[tuple[Any, Any]]:
    """(library, handle) of each GPU; none without nvidia-ml-py or a driver."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        return [
            (nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())
        ]
    except Exception:  # noqa: BLE001 - NVMLError is known only where the library is
        return []


def gpu_bytes(pid: int | None) -> int | None:
    """GPU memory that a process holds now; None where no GPU tells."""
    devices = nvml_devices()
    if pid is None or not devices:
        return None
    total = 0
    for nvml, device in devices:
        with suppress(Exception):
            for entry in nvml.nvmlDeviceGetComputeRunningProcesses(device):
                total += (entry.usedGpuMemory or 0) if entry.pid == pid else 0
    return total


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
