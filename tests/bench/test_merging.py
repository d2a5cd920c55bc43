"""What merging costs: the sums, and the three programs on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from bench.child import ChildRun
from bench.merging.copy_model import copy_model
from bench.merging.cost import MergeCost, merge_cost, merge_table
from bench.merging.random_lora import write_random_lora
from exporter.adapters.base import BaseIdentity
from exporter.adapters.load import load_adapter
from exporter.arch.spec import load_spec
from exporter.errors import EngineUnfit, UsageError
from tests.tiny import save_tiny

MB = 1_000_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama2", tmp_path_factory.mktemp("merging") / "model", sparsity=0.7)


def runner(seconds: dict[str, float], peaks: dict[str, int]) -> object:
    """Children that tell these seconds; the way is known by the command."""

    def run(argv: Sequence[str]) -> ChildRun:
        text = " ".join(argv)
        way = "copy" if "copy_model" in text else "peft" if "peft_merge" in text else "no adapter"
        if "--on-merge" in argv:
            way = "merge"
        told: object = seconds[way]
        if way in ("merge", "no adapter"):
            told = {"check": seconds[way] / 4, "lower": 3 * seconds[way] / 4}
        log = "reading ...\n" + json.dumps({"measured": {"seconds": told}}, indent=2) + "\nend"
        return ChildRun(0, 9.0, peaks[way], peaks[way], log)

    return run


def cost(model: Path, **peaks: int) -> MergeCost:
    seconds = {"copy": 3.0, "no adapter": 4.0, "merge": 5.0, "peft": 20.0}
    all_peaks = {"copy": 50, "no adapter": 100, "merge": 105, "peft": 900} | peaks
    bytes_of = {w: MB * p for w, p in all_peaks.items()}
    return merge_cost(model, 4, rounds=2, runner=runner(seconds, bytes_of))  # type: ignore[arg-type]


def test_ratios_and_bounds(model: Path) -> None:
    found = cost(model)
    assert found.speed_of_copy == pytest.approx(3 / 5)
    assert found.memory_of_plain == pytest.approx(1.05)
    assert found.peft_time == pytest.approx(4.0)
    assert found.reached
    assert len(found.runs) == 8
    console = Console(record=True, width=160)
    console.print(merge_table(found))
    assert "0.60 of the copy's speed" in console.export_text()


def test_too_much_memory_misses(model: Path) -> None:
    assert not cost(model, merge=111).reached


def test_a_failed_child_is_an_error(model: Path) -> None:
    def broken(argv: Sequence[str]) -> ChildRun:
        return ChildRun(3, 1.0, 0, 0, "it broke")

    with pytest.raises(EngineUnfit, match="it broke"):
        merge_cost(model, 4, rounds=1, runner=broken)
    with pytest.raises(UsageError):
        merge_cost(model, 4, rounds=0, runner=broken)


def test_the_copy_is_bit_for_bit(model: Path, tmp_path: Path) -> None:
    copy_model(model, tmp_path / "out")
    mine = load_file(tmp_path / "out" / "model.safetensors")
    (source,) = model.glob("*.safetensors")
    theirs = load_file(source)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[n].view(np.uint8), theirs[n].view(np.uint8)) for n in mine)


def test_the_random_lora_is_one(model: Path, tmp_path: Path) -> None:
    spec = load_spec(json.loads((model / "config.json").read_text()))
    folder = write_random_lora(model, tmp_path / "adapter", 4)
    adapter = load_adapter(folder, spec, BaseIdentity(None, lambda: ""))
    assert adapter.deltas.keys() == {li.module for li in spec.linears()}


@pytest.mark.slow
def test_all_four_ways_run(model: Path) -> None:
    found = merge_cost(model, 4, rounds=1)
    assert {r.way for r in found.runs} == {"copy", "no adapter", "merge", "peft"}
    assert all(r.seconds > 0 and r.peak_rss_bytes > 0 for r in found.runs)
