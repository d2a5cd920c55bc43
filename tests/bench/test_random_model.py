"""Random models: sizes, determinism, zeros, and that transformers reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from bench import random_model
from bench.random_model import blocks, make_random
from bench.shapes import SIZES_GB, TINYLLAMA, Shape, find_shape, sized
from exporter.errors import UsageError

SMALL = Shape("small", 2, 64, 160, 4, 2, 96, max_positions=64)


def test_tinyllama_has_at_least_1_1_billion_parameters() -> None:
    assert TINYLLAMA.parameters == 1_100_048_384


def test_sizes_differ_in_layers_alone() -> None:
    shapes = [sized(n) for n in SIZES_GB]
    for n, shape in zip(SIZES_GB, shapes, strict=True):
        assert shape.parameters * 2 == pytest.approx(n * 1e9, rel=0.05)
        assert replace(shape, name="", layers=0) == replace(TINYLLAMA, name="", layers=0)
        assert shape.largest_tensor == 32000 * 2048


@pytest.mark.parametrize("name", ["", "gb", "0gb", "65gb", "1.5gb", "llama", "-1gb"])
def test_unknown_shapes_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        find_shape(name)
    assert find_shape("4gb") == sized(4) and find_shape("tinyllama-1.1b") is TINYLLAMA


@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_blocks_do_not_depend_on_memory_limits_and_meet_the_sparsity(
    sparsity: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (200, 300)
    name = "model.layers.0.mlp.up_proj.weight"
    whole = np.concatenate(list(blocks(name, shape, sparsity, (1, 2)))).astype(np.float32)
    assert whole.shape == shape
    assert abs((whole == 0).mean() - sparsity) < 0.01
    assert whole[whole != 0].std() == pytest.approx(0.02, rel=0.02)
    monkeypatch.setattr(random_model, "BLOCK_VALUES", 1000)
    small = list(blocks(name, shape, sparsity, (1, 2)))
    assert max(b.size for b in small) <= 1000
    np.testing.assert_array_equal(np.concatenate(small).astype(np.float32), whole)


def test_sparse_and_dense_agree_where_kept() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    (dense,), (sparse,) = (list(blocks(name, (64, 64), s, (3, 4))) for s in (0.0, 0.5))
    kept = sparse != 0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(sparse[kept].view(np.uint16), dense[kept].view(np.uint16))
    head = next(blocks("lm_head.weight", (64, 64), 0.9, (3, 4)))
    assert (head != 0).mean() > 0.99


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_impossible_sparsity_is_refused(tmp_path: Path, sparsity: float) -> None:
    with pytest.raises(UsageError):
        make_random(SMALL, tmp_path / "out", sparsity, 0)
    assert not (tmp_path / "out").exists()


def test_folder_repeats_by_seed_and_transformers_reads_it(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    sizes = [make_random(SMALL, tmp_path / n, 0.5, s) for n, s in (("a", 1), ("b", 1), ("c", 2))]
    assert sizes == [SMALL.parameters * 2] * 3
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b != c
    with safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {name for name, _, _ in SMALL.layout()}
        q = file.get_tensor("model.layers.1.self_attn.q_proj.weight")
    assert q.dtype == torch.bfloat16 and 0.4 < (q == 0).float().mean() < 0.6
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert sum(p.numel() for p in model.parameters()) == SMALL.parameters
    assert bool(torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all())
