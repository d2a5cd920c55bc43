"""Wall time and peak memory of child processes of known size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.child import descendants, run_child

_HOLD = "x = bytearray({mb} << 20); import time; time.sleep({s}); del x"
_NESTED = "import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"


def test_peak_is_that_of_the_child_alone() -> None:
    ballast = bytearray(300 << 20)
    plain = run_child([sys.executable, "-c", _HOLD.format(mb=1, s=0.5)])
    large = run_child([sys.executable, "-c", _HOLD.format(mb=200, s=0.5)])
    grown = large.peak_rss_bytes - plain.peak_rss_bytes
    assert grown == pytest.approx(199 << 20, rel=0.05)
    assert plain.peak_rss_bytes < 100e6 < len(ballast)
    assert plain.seconds >= 0.5


def test_memory_that_was_freed_still_counts() -> None:
    code = "x = bytearray(200 << 20); del x; import time; time.sleep(0.6)"
    assert run_child([sys.executable, "-c", code]).peak_rss_bytes > 200 << 20


def test_a_process_of_the_child_counts() -> None:
    code = _NESTED.format(code=_HOLD.format(mb=200, s=0.8))
    run = run_child([sys.executable, "-c", code])
    assert run.peak_rss_bytes > 200 << 20
    assert run.peak_sum_bytes > run.peak_rss_bytes


def test_status_and_last_output_are_kept() -> None:
    run = run_child([sys.executable, "-c", "import sys; print('so'); sys.exit('why')"])
    assert run.failed and run.status == 1 and "so" in run.log and "why" in run.log


def test_an_interrupted_child_may_clean_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, cleaned = tmp_path / "ready", tmp_path / "cleaned"
    code = f"""
import signal, sys, time
def stop(*_):
    open({str(cleaned)!r}, "w").close()
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
open({str(ready)!r}, "w").close()
time.sleep(60)
"""

    def interrupted(pid: int) -> tuple[int, int]:
        if ready.exists():
            raise KeyboardInterrupt
        return 0, 0

    monkeypatch.setattr("bench.child._memory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_child([sys.executable, "-c", code])
    assert cleaned.exists()


def test_descendants_are_found() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        import os

        assert child.pid in descendants(os.getpid())
        assert descendants(child.pid) == []
    finally:
        child.kill()
        child.wait()
