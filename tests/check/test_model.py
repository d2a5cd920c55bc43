"""check_model on whole models: patterns, mask sources, masks files, progress, memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.sparsity.mask import Mask
from exporter.store.checkpoint import Checkpoint
from tests.check.folder import (
    BF16,
    LINEARS,
    Q0,
    Q0W,
    all_masks,
    tensors,
    write_masks_file,
    write_model,
)
from tests.sparsity.slow import prune_nm
from tests.tiny import KINDS, save_tiny


def pruned(n: int = 2, m: int = 4) -> tuple[dict, dict]:
    """Tensors pruned to N:M, and their masks by module."""
    rng = np.random.default_rng(3)
    masks = {name: prune_nm(rng, *shape, n, m) for name, shape in LINEARS.items()}
    arrays = tensors()
    for module, kept in masks.items():
        arrays[f"{module}.weight"] = np.where(kept, arrays[f"{module}.weight"], np.float32(0))
    return arrays, masks


@pytest.mark.parametrize("n", [1, 2])
def test_patterns_and_masks_come_from_the_zeros(tmp_path, n) -> None:
    arrays, masks = pruned(n)
    checked = check_model(write_model(tmp_path, arrays))
    assert {str(p.pattern) for p in checked.patterns.values()} == {f"{n}:4"}
    assert checked.masks.origin == "zeros"
    for linear in checked.spec.linears():
        assert checked.masks.mask(linear) == Mask.from_bool(masks[linear.module])


def test_a_masks_file_that_equals_the_zeros(tmp_path) -> None:
    arrays, masks = pruned()
    path = write_masks_file(tmp_path / "masks.safetensors", masks)
    checked = check_model(write_model(tmp_path / "model", arrays), masks=path)
    assert (checked.masks.origin, checked.notes) == ("masks.safetensors", ())
    assert {p.pattern.label for p in checked.patterns.values()} == {"2:4"}
    for linear in checked.spec.linears():
        assert checked.masks.mask(linear) == Mask.from_bool(masks[linear.module])


def test_a_kept_zero_stays_kept(tmp_path) -> None:
    arrays, masks = pruned()
    row, column = np.argwhere(masks[Q0])[5]
    arrays[Q0W][row, column] = 0.0
    path = write_masks_file(tmp_path / "masks.safetensors", masks)
    checked = check_model(write_model(tmp_path / "model", arrays), masks=path)
    assert [(n.tensor, n.what, n.count) for n in checked.notes] == [(Q0W, "kept-zeros", 1)]
    assert checked.patterns[Q0].kept == 128
    linear = checked.spec.linears()[0]
    assert bool(checked.masks.mask(linear).rows()[row, column])


@pytest.mark.parametrize("value", [1.0, -1e-45])
def test_a_value_outside_the_mask_is_refused(tmp_path, value) -> None:
    arrays, masks = pruned()
    spots = np.argwhere(~masks[Q0])[[100, 7]]
    for row, column in spots:
        arrays[Q0W][row, column] = value
    path = write_masks_file(tmp_path / "masks.safetensors", masks)
    with pytest.raises(InputRefused) as caught:
        check_model(write_model(tmp_path / "model", arrays), masks=path)
    error = caught.value
    assert (error.code, error.tensor, error.file) == ("mask-mismatch", Q0W, "masks.safetensors")
    first = [int(i) for i in spots[1]]
    assert error.found.startswith("2 of the 128 weights")
    assert f"the first at {first}" in error.found


def test_a_negative_zero_outside_the_mask_is_a_zero(tmp_path) -> None:
    arrays, masks = pruned()
    row, column = np.argwhere(~masks[Q0])[0]
    arrays[Q0W][row, column] = -0.0
    path = write_masks_file(tmp_path / "masks.safetensors", masks)
    checked = check_model(write_model(tmp_path / "model", arrays), masks=path)
    assert [n.what for n in checked.notes] == ["negative-zeros"]


def test_a_dense_model_under_a_dense_mask(tmp_path) -> None:
    path = write_masks_file(tmp_path / "masks.safetensors", all_masks())
    checked = check_model(write_model(tmp_path / "model"), masks=path)
    assert {p.pattern.kind for p in checked.patterns.values()} == {"dense"}


def test_a_mask_that_is_24_along_the_output_axis_only(tmp_path) -> None:
    arrays = tensors()
    kept = prune_nm(np.random.default_rng(0), 16, 16, 2, 4).T
    arrays[Q0W] = np.where(kept, arrays[Q0W], np.float32(0))
    assert check_model(write_model(tmp_path, arrays)).patterns[Q0].pattern.kind == "unstructured"


def test_progress_ends_at_the_bytes_of_all_tensors(tmp_path) -> None:
    steps: list[tuple[str, int, int]] = []
    arrays = tensors()
    check_model(write_model(tmp_path, arrays), progress=lambda *s: steps.append(s))
    total = sum(a.nbytes for a in arrays.values())
    assert [s[1] for s in steps] == sorted(s[1] for s in steps)
    assert steps[-1] == ("check values", total, total)
    assert len(steps) == len(arrays)


def test_the_first_fault_in_order_is_told(tmp_path) -> None:
    arrays = tensors()
    arrays["model.layers.1.mlp.down_proj.weight"][0, 0] = np.nan
    arrays[Q0W][15, 15] = np.nan
    for _ in range(5):
        with pytest.raises(InputRefused) as caught:
            check_model(write_model(tmp_path, arrays))
        assert caught.value.tensor == Q0W


def test_memory_does_not_follow_the_model(tmp_path, monkeypatch) -> None:
    """Twelve layers take no more than two: counts are kept, not masks (144 kB a layer)."""
    monkeypatch.setattr("exporter.check.model._THREADS", 1)
    width = 24_000
    big = np.random.default_rng(0).random((width, 16)).astype(BF16)

    def peak(layers: int) -> int:
        arrays = {n: a for n, a in tensors(dtype=BF16).items() if ".layers." not in n}
        for i in range(layers):
            for name, array in tensors(dtype=BF16).items():
                if ".layers.0." in name:
                    wide = {"gate_proj": big, "up_proj": big, "down_proj": big.T}
                    part = name.split(".")[-2]
                    arrays[name.replace(".0.", f".{i}.")] = wide.get(part, array)
        config = {"num_hidden_layers": layers, "intermediate_size": width}
        checkpoint = write_model(tmp_path / str(layers), arrays, config)
        del arrays
        tracemalloc.start()
        checked = check_model(checkpoint)
        for linear in checked.spec.linears():
            checked.masks.mask(linear)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(1)
    assert peak(12) < peak(2) + 500_000


@pytest.mark.parametrize("kind", KINDS)
def test_models_as_transformers_saves_them(tmp_path, kind) -> None:
    folder = save_tiny(kind, tmp_path, dtype="bfloat16", sparsity=0.7, shard="50KB")
    checked = check_model(Checkpoint.open(folder))
    assert {p.pattern.kind for p in checked.patterns.values()} == {"unstructured"}
    assert len(checked.patterns) == 7 * checked.spec.layers
    assert (checked.dropped, checked.notes) == ({}, ())
