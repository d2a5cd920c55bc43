"""The books of a merge: nothing of an adapter is lost without a word."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from exporter.adapters.base import Adapter
from exporter.adapters.load import load_adapter
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.s2ft import write_s2ft
from exporter.errors import InputRefused
from exporter.merge.accounting import account
from exporter.merge.fuse import fuse
from exporter.merge.measure import measure
from exporter.report.export import AccountingPart
from exporter.store.dtypes import DType
from exporter.store.writer import write_safetensors
from tests.adapters.forge import BASE, simple_lora, spec_of
from tests.merge.world import lora, make_model

Q0 = "model.layers.0.self_attn.q_proj"
DOWN1 = "model.layers.1.mlp.down_proj"


def test_the_books_of_a_masked_merge():
    checked = make_model(0.5)
    adapter = replace(lora(checked, Q0, DOWN1), tensors_found=4)
    fused = fuse(checked, [(adapter, 1.0)], "mask")
    types = {f"{Q0}.weight": DType.BF16, f"{DOWN1}.weight": DType.BF16}
    books = account(fused, [(adapter, 1.0)], measure(fused, types))
    assert (books.tensors_used, books.tensors_found) == (4, 4)
    assert (books.linears, books.linears_adapted, books.linears_changed) == (14, 2, 2)
    kept = sum(checked.patterns[m].kept for m in (Q0, DOWN1))
    assert books.elements_changed == kept
    assert books.elements_vanished is not None
    assert books.elements_vanished < kept
    assert books.unchanged == ()


def test_a_module_that_stays_as_it_was_is_named():
    checked = make_model(0.0)
    moving, still = lora(checked, Q0), lora(checked, DOWN1)
    (delta,) = still.deltas.values()
    zero = replace(cast("LowRankDelta", delta), scale=0.0)
    adapters = [(moving, 1.0), (replace(still, deltas={DOWN1: zero}), 1.0)]
    fused = fuse(checked, adapters)
    books = account(fused, adapters, measure(fused))
    assert books.unchanged == (DOWN1,)
    assert (books.linears_adapted, books.linears_changed) == (2, 1)
    assert books.elements_vanished is None


def test_branches_count_as_changed():
    checked = make_model(0.5)
    adapters = [(lora(checked, Q0), 1.0)]
    fused = fuse(checked, adapters, "separate")
    assert account(fused, adapters, measure(fused)).linears_changed == 1


def test_tensors_are_counted_apart_from_the_family(tmp_path: Path):
    spec = spec_of()
    folder = simple_lora(tmp_path / "a", spec)
    given = load_adapter(folder, spec, BASE).tensors_found
    assert given > 0
    write_safetensors(folder / "other.safetensors", {"x": np.ones(3, np.float32)})
    with pytest.raises(InputRefused, match=f"{given} of {given + 1} tensors") as caught:
        load_adapter(folder, spec, BASE)
    assert caught.value.code == "adapter-tensor-unused"


def test_s2ft_adapters_that_meet_are_told(tmp_path: Path):
    checked = make_model(0.0)
    spec = checked.spec
    width = {li.module: li.in_features for li in spec.linears()}[DOWN1]
    adapters: list[tuple[Adapter, float]] = []
    for name, index in (("a", [1, 5]), ("b", [5, 7, width - 1])):
        values = np.ones((spec.hidden, len(index)), np.float32)
        write_s2ft(tmp_path / name, {DOWN1: ("cols", index, values)})
        adapters.append((load_adapter(tmp_path / name, spec, BASE), 0.5))
    fused = fuse(checked, adapters)
    books = AccountingPart(**asdict(account(fused, adapters, measure(fused))))
    assert books.overlaps[DOWN1].shared == 1
    assert books.overlaps[DOWN1].elements == spec.hidden
    assert "1 rows or columns" in books.lines()[-1]


@pytest.mark.parametrize(
    ("changed", "vanished", "words"),
    [(100, 84, "84%"), (100, 25, None), (100, None, None), (0, 0, None)],
)
def test_changes_that_vanish_are_warned_of(changed: int, vanished: int | None, words: str | None):
    part = AccountingPart(
        tensors_found=2,
        tensors_used=2,
        linears=1,
        linears_adapted=1,
        linears_changed=1,
        unchanged=(),
        replaced=0,
        added_to=0,
        elements_changed=changed,
        elements_vanished=vanished,
        overlaps={},
    )
    warning = part.warning()
    assert (warning is None) == (words is None)
    assert warning is None or (words or "") in warning and "values=fp16" in warning
