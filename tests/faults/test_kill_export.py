"""kill -9 at random moments of an export: the output is absent, or old and whole, or verifies."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny import save_tiny

CLI = [sys.executable, "-m", "exporter.cli"]


def export_command(model: Path, out: Path) -> list[str]:
    return [*CLI, str(model), "--target", "onnxruntime", "-o", str(out), "--force"]


def manifest_of(out: Path) -> bytes | None:
    path = out / ".sparse-export" / "manifest.json"
    return path.read_bytes() if path.exists() else None


def kill_at(command: list[str], seconds: float) -> int:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait()


def verify(out: Path) -> int:
    return subprocess.run([*CLI, "verify", str(out)], capture_output=True, check=False).returncode


def run_kills(folder: Path, kills: int, seed: int) -> list[str]:
    """Kill `kills` exports; what was found each time ("absent", "old", "new")."""
    old_model = save_tiny("llama2", folder / "old-model", sparsity=0.5, seed=1)
    new_model = save_tiny("llama2", folder / "new-model", sparsity=0.5, seed=2)
    out = folder / "out"
    start = time.perf_counter()
    subprocess.run(export_command(new_model, out), check=True, capture_output=True)
    whole = time.perf_counter() - start
    new = manifest_of(out)
    subprocess.run(export_command(old_model, out), check=True, capture_output=True)
    old = manifest_of(out)
    assert old and new and old != new
    dice = random.Random(seed)
    found: list[str] = []
    for _ in range(kills):
        kill_at(export_command(new_model, out), dice.uniform(0.0, whole * 1.02))
        now = manifest_of(out)
        assert now in (old, new), "a published folder is whole: the old one or the new one"
        assert verify(out) == 0
        found.append("old" if now == old else "new")
        if now == new:
            subprocess.run(export_command(old_model, out), check=True, capture_output=True)
    fresh = folder / "fresh"
    for _ in range(max(2, kills // 5)):
        kill_at(export_command(new_model, fresh), dice.uniform(0.0, whole))
        if fresh.exists():
            assert verify(fresh) == 0
            found.append("new")
            break
        found.append("absent")
    leftovers_are_cleaned(folder, new_model, fresh)
    return found


def leftovers_are_cleaned(folder: Path, model: Path, out: Path) -> None:
    subprocess.run(export_command(model, out), check=True, capture_output=True)
    assert verify(out) == 0
    assert not list(folder.glob("fresh.partial-*"))


@pytest.mark.slow
def test_a_few_kills(tmp_path: Path) -> None:
    assert run_kills(tmp_path, kills=4, seed=0)


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path) -> None:
    found = run_kills(tmp_path, kills=50, seed=1)
    print(json.dumps({kind: found.count(kind) for kind in sorted(set(found))}))
    assert "old" in found
