"""An export opens no network connection, from the first header to the published folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.deepsparse.runtime import RUNTIME

# Python's own audit events see each call of a socket that Python code makes.
PROGRAM = """
import os, sys
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"):
        sys.stderr.write(f"network: {event} {args}\\n")
        sys.stderr.flush()
        os._exit(99)
sys.addaudithook(refuse)
if sys.argv[1] == "--try":
    import socket
    socket.create_connection(("127.0.0.1", 9))
from exporter.cli import main
main(sys.argv[1:])
"""


def run(*args: str) -> subprocess.CompletedProcess[str]:
    # Without the variable that keeps the hub's library offline: it must not be what helps.
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-c", PROGRAM, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_the_hook_sees_a_connection() -> None:
    done = run("--try")
    assert done.returncode == 99 and "network: socket." in done.stderr


@pytest.mark.slow
def test_an_export_makes_none(sparse_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(str(sparse_model), "--target", "onnxruntime", "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert (out / ".sparse-export" / "manifest.json").is_file()


def test_deepsparse_reports_nothing_to_its_maker() -> None:
    assert RUNTIME.environment()["NM_DISABLE_ANALYTICS"] == "1"
