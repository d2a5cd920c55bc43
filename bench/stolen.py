"""CPU time that the host of a virtual machine gave to others while this one wanted to run.

Linux counts it as "steal" (proc(5), /proc/stat); psutil reads it. Where it is large, seconds tell
of the host and not of what was timed.
"""

from __future__ import annotations

import psutil


class Stolen:
    """Counts from when it is made."""

    def __init__(self) -> None:
        """Note the counters."""
        self._before = _seconds()

    def share(self) -> float | None:
        """Of the CPU seconds that this machine wanted since: 0 to 1; None where it is not told."""
        if self._before is None or (now := _seconds()) is None:
            return None
        stolen, wanted = (after - before for before, after in zip(self._before, now, strict=True))
        return min(1.0, max(0.0, stolen / wanted)) if wanted > 0 else 0.0


def _seconds() -> tuple[float, float] | None:
    """Stolen, and all but idle, since the start of the system."""
    times = psutil.cpu_times()
    stolen = getattr(times, "steal", None)
    if stolen is None:
        return None
    return stolen, times.user + times.system + getattr(times, "softirq", 0.0) + stolen
