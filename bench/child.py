"""A command in a process of its own: wall time and the peak memory of that process alone.

Peak: the largest VmHWM of /proc/PID/status, polled, of the process and each of its
descendants, which is what an engine or a helper process may be; ru_maxrss of our children would
also count what the child held before exec, a copy of this process.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.01
SCAN_EVERY = 10
_LOG_CHARS = 8000
_END_SECONDS = 10.0


@dataclass(frozen=True)
class ChildRun:
    """One finished command."""

    status: int
    seconds: float
    peak_rss_bytes: int  # of the largest single process
    peak_sum_bytes: int  # processes alive at one time, summed: shared pages count twice
    log: str  # the last of its output

    @property
    def failed(self) -> bool:
        """Whether it did not end with 0."""
        return self.status != 0


def run_child(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> ChildRun:
    """Run `argv` to its end, polling its memory (Linux)."""
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            peak, total = _watch(process)
        except BaseException:
            _end(process)
            raise
        seconds = time.perf_counter() - start
        log.seek(max(0, log.tell() - _LOG_CHARS))
        text = log.read().decode(errors="replace")
    return ChildRun(process.returncode, seconds, peak, total, text)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask first: an export that is told to end removes what it has written."""
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _watch(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    peaks: dict[int, int] = {process.pid: 0}
    total = polls = 0
    alive = [process.pid]
    while True:
        if polls % SCAN_EVERY == 0:  # reading all of /proc costs more than one poll may
            alive = [process.pid, *descendants(process.pid)]
        polls += 1
        resident = 0
        for pid in alive:
            peak, now = _memory(pid)
            peaks[pid] = max(peak, peaks.get(pid, 0))
            resident += now
        total = max(total, resident)
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
            return max(peaks.values()), max(total, *peaks.values())


def _memory(pid: int) -> tuple[int, int]:
    """(VmHWM, VmRSS) in bytes; zeros once the process is gone."""
    found = {"VmHWM": 0, "VmRSS": 0}
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            key, _, rest = line.partition(":")
            if key in found:
                found[key] = int(rest.split()[0]) * 1024
    return found["VmHWM"], found["VmRSS"]


def descendants(pid: int) -> list[int]:
    """Living children of `pid`, and theirs; from /proc, as not every kernel lists children."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(OSError):
                # The second field is the command in brackets and may hold spaces (proc(5)).
                after = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(after[1]), []).append(int(entry))
    out, todo = list[int](), [pid]
    while todo:
        found = children.get(todo.pop(), [])
        out += found
        todo += found
    return out
