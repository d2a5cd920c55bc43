"""The steps of the README's scripts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_SCRIPT = """
import sys
from pathlib import Path
from scripts import steps
steps.BIN = Path(sys.executable).parent
name = Path(sys.executable).name
wait = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
sys.exit(steps.main_of(lambda: steps.step(name, "-c", wait)))
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for the process in /proc")
def test_a_script_that_is_ended_ends_its_command() -> None:
    script = subprocess.Popen([sys.executable, "-c", _SCRIPT], stdout=subprocess.PIPE, text=True)
    assert script.stdout is not None
    number = next(line.strip() for line in script.stdout if line.strip().isdigit())
    script.send_signal(signal.SIGTERM)
    assert script.wait(30) == 128 + signal.SIGTERM
    script.stdout.close()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{number}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{number}").exists()
