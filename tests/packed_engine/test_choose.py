"""The choice between sparse and dense forms: what decides it, what is kept, what overrides it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.packed.engine.choose import Chooser, as_dense, machine
from backends.packed.engine.record import read_record, record_file, write_record
from backends.packed.engine.target import PackedCpuTarget
from backends.packed.kernels.linear import CpuLinear
from backends.packed.pack import pack
from backends.packed.spec import PackedLinear, Parts, ValueType
from backends.packed.unpack import dense
from tests.vllm_target.models import PATTERNS, fused, lower, save_pruned


def linear(values: ValueType, group: int = 0) -> tuple[PackedLinear, Parts]:
    rng = np.random.default_rng(0)
    kept = rng.random((48, 192)) < 0.3
    spec = PackedLinear("ragged", values, (48, 192), int(kept.sum()), group=group)
    codes: Any = rng.integers(-7, 8, (48, 192)).astype(values.codes)
    scales = rng.integers(1, 9, (48, spec.scale_groups)).astype(np.float32) if group else None
    if values.quantised and not group:
        scales = np.ones((48, 1), np.float32)
    return spec, pack(spec, codes, kept, scales)


@pytest.fixture(autouse=True)
def quick_choice() -> None:
    """Here the real one is tested."""


@pytest.mark.parametrize(
    ("values", "group"),
    [(ValueType.BF16, 0), (ValueType.INT8, 0), (ValueType.INT4, 64), (ValueType.FP8, 64)],
)
def test_the_dense_form_has_the_same_numbers(values: ValueType, group: int):
    spec, parts = linear(values, group)
    assert np.array_equal(dense(*as_dense(spec, parts)), dense(spec, parts))


@pytest.mark.parametrize(
    ("ratios", "kinds"),
    [
        ((0.5, 0.5, 0.5), ("ragged", "ragged", "ragged")),
        ((1.05, 1.05, 1.2), ("ragged", "ragged", "ragged")),  # not worth a copy
        ((0.5, 1.2, 1.4), ("ragged", "dense", "dense")),
        ((2.0, 0.9, 0.9), ("dense", "ragged", "ragged")),
    ],
)
def test_each_class_of_rows_gets_its_fastest(ratios: Any, kinds: Any):
    calls: list[int] = []

    def timed(sparse: CpuLinear, other: CpuLinear, rows: int) -> float:
        assert (sparse.spec.kind, other.spec.kind) == ("ragged", "dense")
        calls.append(rows)
        return ratios[(1, 8, 64).index(rows)]

    chooser = Chooser(timed=timed)
    for _ in range(3):
        forms = chooser.forms(*linear(ValueType.BF16), CpuLinear.build)
        assert tuple(form.spec.kind for form in forms) == kinds
    assert calls == [1, 8, 64]  # once for all that are alike
    ((kind, told),) = chooser.told().items()
    assert kind == "ragged bf16 48x192 30 % int8" and told.startswith("3 linears; 1 rows: ")


def test_a_linear_stored_dense_has_one_form():
    spec, parts = as_dense(*linear(ValueType.BF16))
    forms = Chooser().forms(spec, parts, CpuLinear.build)
    assert len({id(form) for form in forms}) == 1


def test_what_was_measured_is_kept_for_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SPARSE_EXPORT_HOME", str(tmp_path))
    first = Chooser()
    first.forms(*linear(ValueType.INT8), CpuLinear.build)
    kept = json.loads(record_file(machine()).read_text())
    assert kept == {"machine": machine(), "ratios": first.ratios}
    assert all(ratio > 0 for ratios in first.ratios.values() for ratio in ratios)
    second = Chooser()
    second.forms(*linear(ValueType.INT8), CpuLinear.build)
    assert second.ratios == first.ratios


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"machine": 3}', None])
def test_a_broken_record_counts_as_none(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SPARSE_EXPORT_HOME", str(tmp_path))
    write_record("here", "kind", [1.0, 2.0, 3.0], 3)
    assert read_record("here", 3) == {"kind": [1.0, 2.0, 3.0]}
    text = content if content is not None else record_file("here").read_text().replace("3.0", "-3")
    record_file("here").write_text(text)
    assert read_record("here", 3) == {}


@pytest.mark.parametrize("execute", ["sparse", "dense", "auto"])
def test_every_choice_gives_the_same_tokens(
    execute: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SPARSE_EXPORT_HOME", str(tmp_path / "home"))
    source = save_pruned("llama3", tmp_path / "m", PATTERNS["unstructured"], dtype="float32")
    target = PackedCpuTarget(execute=execute)
    session = target.open(lower(target, fused(source, target), tmp_path / "out"))
    base = PackedCpuTarget(execute="sparse").open(tmp_path / "out")
    assert (
        session.generate(list(range(5, 25)), 10).tokens
        == base.generate(list(range(5, 25)), 10).tokens
    )
    assert bool(session.facts().extra["choices"]) == (execute == "auto")
    session.close()
    base.close()
