"""Change points over results: a lasting step is found where it is, one wild result is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import cli
from bench.decide.rule import Rule
from bench.flow import run_one
from bench.history import change_points, read_history
from exporter.errors import InputRefused
from tests.bench.fleet import Fleet

Pair = tuple[Path, Path]


def test_steps_are_found_where_they_are() -> None:
    draw = np.random.default_rng(4)
    noise = np.exp(0.01 * draw.normal(size=24))
    assert change_points(noise.tolist()) == []
    level = np.repeat([1.0, 1.1, 0.9], 8)
    assert change_points((noise * level).tolist()) == [8, 16]
    assert change_points([1.0] * 7) == [] == change_points([1.0] * 20)


def test_noise_alone_gives_few_false_changes() -> None:
    draw = np.random.default_rng(8)
    found = sum(
        bool(change_points(np.exp(0.03 * draw.normal(size=30)).tolist())) for _ in range(100)
    )
    assert found <= 5


def fill(folder: Path, artefact: Path, factors: list[float]) -> None:
    folder.mkdir()
    for i, factor in enumerate(factors):
        breath = 1 + 0.002 * ((i * 7) % 5)
        fleet = Fleet({"dense": lambda n, f=factor * breath: f})
        result = run_one(artefact, fleet.how(title=f"commit {i}"))
        moved = result.model_copy(update={"time": f"2026-01-{i + 1:02d}T00:00:00+00:00"})
        (folder / f"{9 - i % 10}-{i}.json").write_text(moved.model_dump_json())


def test_a_lasting_slow_down_is_named_by_its_result(pair: Pair, tmp_path: Path) -> None:
    fill(tmp_path / "h", pair[0], [1.0] * 6 + [1.1] * 6)
    found = read_history(tmp_path / "h", Rule())
    assert {c.workload for c in found.changes} == {"decode-b1", "prefill-32", "mixed-24-8"}
    for change in found.changes:
        assert change.title == "commit 6" and change.last and change.p < 0.05
        assert change.ratio == pytest.approx(1.1, rel=0.01)
    assert cli.run(["history", str(tmp_path / "h")]) == 0
    assert cli.run(["history", str(tmp_path / "h"), "--fail"]) == 1


def test_one_wild_result_is_no_change(pair: Pair, tmp_path: Path) -> None:
    fill(tmp_path / "h", pair[0], [1.0] * 5 + [1.5] + [1.0] * 6)
    assert read_history(tmp_path / "h", Rule()).changes == []


def test_other_files_and_machines_are_left_out_and_named(pair: Pair, tmp_path: Path) -> None:
    fill(tmp_path / "h", pair[0], [1.0] * 3)
    (tmp_path / "h" / "notes.json").write_text("{}")
    path = next((tmp_path / "h").glob("9-0.json"))
    raw = json.loads(path.read_text())
    raw["fingerprint"]["cpu"] = "Another"
    path.write_text(json.dumps(raw))
    found = read_history(tmp_path / "h", Rule())
    assert found.results == 2 and set(found.left_out) == {"notes.json", "unlike machines"}
    assert read_history(tmp_path / "h", Rule(), force=True).results == 3
    with pytest.raises(InputRefused, match="input-missing"):
        read_history(tmp_path, Rule())
