"""Bytes of linears against their dense form: what is promised, from the sizes of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.vllm.counts import tightest
from backends.vllm.target import PackedTarget, VllmNmTarget, VllmSparseTarget
from backends.vllm.two_four import Vllm24Target
from exporter.sparsity.count import mask_pattern
from exporter.sparsity.mask import Mask
from exporter.store.header import read_header
from tests.vllm_target.models import Rule, fused, layers, lower, nm, save_pruned, structure
from tests.vllm_target.models import unstructured as free

WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}


def ratio(target: PackedTarget, rule: Rule, folder: Path) -> float:
    """From the headers of the file alone, over two bytes a weight."""
    source = save_pruned("llama2", folder / "m", rule, **WIDE)
    model = fused(source, target)
    out = lower(target, model, folder / "out")
    entries = read_header(out / "model.safetensors").entries.values()
    modules = layers(out)
    packed = sum(e.nbytes for e in entries if e.name.rpartition(".")[0] in modules)
    dense = sum(2 * int(np.prod(e["shape"])) for e in modules.values())
    found = structure(target, model, out)
    assert found.failures == () and found.packed is not None
    assert (found.packed.nbytes, found.packed.dense_nbytes) == (packed, dense)
    told = [d.message for d in target.inspect(model)][0]
    assert f"{packed / dense:.4f} of the {dense / 1e6:.2f} MB" in told
    return packed / dense


@pytest.mark.parametrize(
    ("target", "rule", "least", "most"),
    [
        (Vllm24Target(), nm(2, 4), 0.5625, 0.5625),
        (VllmSparseTarget(), nm(2, 4), 0.5625, 0.5625),
        (VllmNmTarget(), nm(4, 8), 0.5625, 0.5625),
        (Vllm24Target(), nm(2, 8), 0.3125, 0.3125),
        (Vllm24Target(), nm(1, 4), 0.3125, 0.3125),
        (Vllm24Target(), nm(1, 8), 0.1875, 0.1875),
        (VllmSparseTarget(), free(0.7), 0.36, 0.37),
        (VllmSparseTarget("int8"), free(0.7), 0.21, 0.22),
        (VllmSparseTarget("fp8"), free(0.7), 0.21, 0.22),
        (VllmSparseTarget("int4"), free(0.7), 0.13, 0.15),
        (Vllm24Target("int4"), nm(2, 4), 0.1875, 0.2),
    ],
)
def test_share_of_dense_bytes(
    target: PackedTarget, rule: Rule, least: float, most: float, tmp_path: Path
):
    assert least <= ratio(target, rule, tmp_path) <= most


@pytest.mark.parametrize(
    ("n", "m", "want"),
    [
        (2, 4, (2, 4)),
        (4, 8, (4, 8)),
        (2, 8, (2, 8)),
        (1, 4, (1, 4)),
        (1, 8, (1, 8)),
        (3, 16, (3, 16)),
    ],
)
def test_the_tightest_pattern_is_the_one_pruned_to(n: int, m: int, want: tuple[int, int]):
    size = np.abs(np.random.default_rng(0).normal(size=(48, 96)))
    found = mask_pattern("m", Mask.from_bool(nm(n, m)("m", size)))
    assert tightest(found) == want


def test_the_tightest_of_a_full_and_of_an_empty_linear():
    full = mask_pattern("m", Mask.from_bool(np.ones((4, 32), np.bool_)))
    empty = mask_pattern("m", Mask.from_bool(np.zeros((4, 32), np.bool_)))
    assert tightest(full) is None and tightest(empty) == (1, 16)
