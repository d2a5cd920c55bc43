"""Ctrl-C and SIGTERM in the middle of an export: exit code 130, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# The real command up to its verification, which here never ends. Signals are set back first: a
# shell that runs the tests in the background leaves them ignored.
PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
from exporter import pipeline
from exporter.cli import main
def never(*args, **named):
    print("verifying", flush=True)
    time.sleep(600)
pipeline.verify_staged = never
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_stopped_export_leaves_what_was_there(
    number: signal.Signals, earlier: bool, single: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    out = place / "deep" / "out"
    if earlier:
        out.mkdir(parents=True)
        (out / "config.json").write_text("{}")
    command = [str(single), "--target", "onnxruntime", "-o", str(out), "--force"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "verifying\n"
            partial = [p for p in out.parent.iterdir() if ".partial-" in p.name]
            assert len(partial) == 1 and (partial[0] / "model.data").stat().st_size > 0
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted" in said and "Traceback" not in said
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    folders = ["place", "place/deep", "place/deep/out", "place/deep/out/config.json"]
    assert left == (folders if earlier else [])
    if earlier:
        assert (out / "config.json").read_text() == "{}"
