"""The stage on a model in memory: which tensors, from where, and the same bytes every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.contract import QuantiseRequest
from exporter.merge.fuse import fuse
from exporter.merge.workbench import Workbench
from exporter.model import CheckedModel, FusedModel, Quantised
from exporter.quantise.measure import losses
from exporter.quantise.solve import Stored
from exporter.quantise.stage import modules_of, quantise
from tests.merge.world import lora, make_model

GPTQ = QuantiseRequest("int4", 64, "gptq")


def bench_of(checked: CheckedModel, folder: Path, *without: str) -> Workbench:
    """Gram matrices of random correlated inputs for every linear but `without`."""
    folder.mkdir()
    bench, rng = Workbench(folder), np.random.default_rng(7)
    for linear in checked.spec.linears():
        width = linear.in_features
        x = rng.standard_normal((2 * width, 9)) @ rng.standard_normal((9, width))
        x = (x + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)
        if linear.module not in without:
            bench.keep_gram([linear.module], x.T @ x)
    return bench


def codes_of(model: FusedModel) -> dict[str, Quantised]:
    return {n: t.quantised for n, t in model.tensors.items() if t.quantised is not None}


def all_bytes(model: FusedModel, step: int) -> bytes:
    parts: list[bytes] = []
    for name, found in codes_of(model).items():
        out = model.tensors[name].shape[0]
        spans = [(r, min(r + step, out)) for r in range(0, out, step)]
        parts += [found.codes(*s).tobytes() for s in spans]
        parts += [found.scales(*s).tobytes() for s in spans]
        parts += [model.tensors[name].rows(*s).tobytes() for s in spans]
    return b"".join(parts)


@pytest.mark.parametrize("method", ["round", "gptq"])
@pytest.mark.parametrize(("kind", "group"), [("int8", 0), ("int4", 64), ("fp8", 0)])
def test_equal_calls_give_equal_bytes(kind: Any, group: int, method: Any, tmp_path: Path) -> None:
    checked = make_model()
    request = QuantiseRequest(kind, group, method)
    models = [
        quantise(fuse(checked, ()), request, bench_of(checked, tmp_path / name)) for name in "ab"
    ]
    first = all_bytes(models[0], 16)
    assert first == all_bytes(models[0], 16) == all_bytes(models[1], 16)
    solved = {isinstance(q.block, Stored) for q in codes_of(models[0]).values()}
    assert solved == {method == "gptq"}


def test_only_linears_with_a_mask() -> None:
    checked = make_model(dense=("q", "down"))
    model = fuse(checked, ())
    pruned = {li.weight for li in checked.spec.linears() if li.role not in ("q", "down")}
    every = {li.weight for li in checked.spec.linears()}
    some = quantise(model, QuantiseRequest("int8"))
    all_of_them = quantise(model, QuantiseRequest("int8", dense=True))
    assert codes_of(some).keys() == pruned and codes_of(all_of_them).keys() == every
    assert modules_of(checked, QuantiseRequest("int8")) == {n[:-7] for n in pruned}
    for name, tensor in some.tensors.items():
        assert name in pruned or tensor is model.tensors[name]


def test_what_a_merge_made_dense_has_no_mask() -> None:
    checked = make_model()
    module = checked.spec.linears()[0].module
    merged = fuse(checked, [(lora(checked, module), 1.0)], "densify")
    assert f"{module}.weight" not in codes_of(quantise(merged, QuantiseRequest("int8")))
    dense = quantise(merged, QuantiseRequest("int8", dense=True)).tensors[f"{module}.weight"]
    assert (dense.rows(0, 8) != 0).mean() > 0.9


def test_zeros_of_a_moved_mask_stay(tmp_path: Path) -> None:
    checked = make_model()
    module = checked.spec.linears()[0].module
    name = f"{module}.weight"
    merged = fuse(checked, [(lora(checked, module), 1.0)], "reprune")
    model = quantise(merged, GPTQ, bench_of(checked, tmp_path / "w"))
    mask, old = model.mask(name), checked.masks.mask(checked.spec.linears()[0])
    assert mask is not None and mask != old
    values = model.tensors[name].rows(0, model.tensors[name].shape[0])
    assert not values[~mask.rows()].view(np.uint32).any() and values[~old.rows()].any()


def test_a_linear_that_was_not_observed_is_rounded_and_named(tmp_path: Path) -> None:
    checked = make_model()
    without = checked.spec.linears()[1].module
    bench, merged = bench_of(checked, tmp_path / "w", without), fuse(checked, ())
    found = losses(merged, quantise(merged, GPTQ, bench), bench)
    assert {m for m, loss in found.items() if loss.method == "round"} == {without}
    assert found[without].error is None and found[without].error_rounded is None
    for module, loss in found.items():
        if module != without:
            assert loss.error is not None and loss.error_rounded is not None
            assert 0 < loss.error < loss.error_rounded


def test_output_errors_by_their_definition(tmp_path: Path) -> None:
    checked = make_model()
    bench, merged = bench_of(checked, tmp_path / "w"), fuse(checked, ())
    model = quantise(merged, GPTQ, bench)
    rounded = quantise(merged, QuantiseRequest("int4", 64))
    for module, loss in losses(merged, model, bench).items():
        name, gram = f"{module}.weight", bench.gram(module)
        assert gram is not None
        out, h = merged.tensors[name].shape[0], gram().astype(np.float64)
        old, new, by_rounding = (
            m.tensors[name].rows(0, out).astype(np.float64) for m in (merged, model, rounded)
        )
        total = np.trace(old @ h @ old.T)
        for values, share in ((new, loss.error), (by_rounding, loss.error_rounded)):
            want = np.trace((values - old) @ h @ (values - old).T) / total
            assert share == pytest.approx(want, rel=1e-3)
