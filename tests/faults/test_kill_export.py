"""kill -9 at random moments of an export: the output is absent, or old and whole, or verifies."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter.cli import run
from tests.tiny import save_tiny

CLI = [sys.executable, "-m", "exporter.cli"]


def arguments(model: Path, out: Path) -> list[str]:
    return [str(model), "--target", "onnxruntime", "-o", str(out), "--force"]


def manifest_of(out: Path) -> bytes | None:
    path = out / ".sparse-export" / "manifest.json"
    return path.read_bytes() if path.exists() else None


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kill_at(command: list[str], seconds: float) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.wait()


def moments(dice: random.Random, kills: int, whole: float) -> list[float]:
    """One in each equal part of the run, and as many again in its last quarter, at publishing."""
    parts = (kills + 1) // 2
    spread = [dice.uniform(part, part + 1) * whole / parts for part in range(parts)]
    return spread + [dice.uniform(0.75 * whole, 1.05 * whole) for _ in range(kills // 2)]


def run_kills(folder: Path, kills: int, seed: int) -> list[str]:
    """Kill `kills` exports over an old output; "old" or "new" for what lay there afterwards."""
    old_model = save_tiny("llama2", folder / "old-model", sparsity=0.5, seed=1)
    new_model = save_tiny("llama2", folder / "new-model", sparsity=0.5, seed=2)
    pristine, out = folder / "pristine", folder / "place" / "out"
    assert run(arguments(old_model, pristine)) == 0
    assert run(["verify", str(pristine)]) == 0
    command = [*CLI, *arguments(new_model, out)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.perf_counter() - start
    old, new = manifest_of(pristine), manifest_of(out)
    assert old and new and old != new
    found: list[str] = []
    now: bytes | None = new
    for moment in moments(random.Random(seed), kills, whole):
        if now == new:
            shutil.rmtree(out)
            shutil.copytree(pristine, out)
        kill_at(command, moment)
        now = manifest_of(out)
        assert now in (old, new), "what is published is whole: the old output or the new one"
        if now == old:
            assert content(out) == content(pristine), "the old output, byte for byte"
        else:
            assert run(["verify", str(out)]) == 0
        found.append("old" if now == old else "new")
    subprocess.run(command, check=True, capture_output=True)
    left = sorted(p.name for p in out.parent.iterdir() if not p.name.endswith(".lock"))
    assert left == ["out"], "the next run removes what killed ones left"
    return found


def test_a_killed_first_export_leaves_no_output_or_a_whole_one(tmp_path: Path) -> None:
    model = save_tiny("llama2", tmp_path / "model", sparsity=0.5, seed=2)
    out = tmp_path / "out"
    for moment in (0.3, 1.5, 4.0):
        kill_at([*CLI, *arguments(model, out)], moment)
        assert not out.exists() or run(["verify", str(out)]) == 0


def test_a_few_kills(tmp_path: Path) -> None:
    assert "old" in run_kills(tmp_path, kills=4, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_fifty_kills(tmp_path: Path) -> None:
    found = run_kills(tmp_path, kills=50, seed=1)
    assert len(found) == 50
    assert "old" in found
