"""Linears stored `[in, out]`: rows, masks, patterns and masks files all are of `[out, in]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.model import CheckedModel
from exporter.sparsity.mask import Mask
from exporter.store import columns
from exporter.store.checkpoint import Checkpoint
from exporter.store.dtypes import DType
from exporter.store.masks import write_masks
from exporter.store.writer import write_safetensors
from tests.tiny import save_tiny

FC = "transformer.h.0.mlp.c_fc"  # [out 44, in 24]
SIZES = {"n_embd": 24, "n_inner": 44, "n_positions": 16}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("gpt2", tmp_path_factory.mktemp("base"), sparsity=0.5, **SIZES)


def rewrite(base: Path, folder: Path, change: Any, dtype: Any = np.float32) -> Path:
    """A copy of `base` with `change(tensors)` done and all tensors in `dtype`."""
    folder.mkdir()
    for path in base.iterdir():
        if path.name != "model.safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    arrays = {n: np.ascontiguousarray(v).astype(dtype) for n, v in tensors.items()}
    write_safetensors(folder / "model.safetensors", arrays, {"format": "pt"})
    return folder


def checked(folder: Path, **options: Any) -> CheckedModel:
    return check_model(Checkpoint.open(folder), **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_masks_and_counts_are_those_of_the_transpose(base: Path, tmp_path: Path, dtype: Any):
    folder = rewrite(base, tmp_path / "m", lambda tensors: None, dtype)
    model = checked(folder)
    stored = load_file(base / "model.safetensors")
    for linear in model.spec.linears():
        weight = stored[linear.weight].T.astype(dtype).astype(np.float32)
        assert weight.shape == (linear.out_features, linear.in_features)
        assert np.array_equal(model.checkpoint.rows(linear.weight), weight)
        assert np.array_equal(model.masks.mask(linear).rows(0, len(weight)), weight != 0)
        pattern = model.patterns[linear.module]
        assert pattern.kept == np.count_nonzero(weight)
        assert (pattern.out_features, pattern.in_features) == weight.shape


def test_zero_rows_and_columns_do_not_swap(base: Path, tmp_path: Path):
    def prune(tensors: Any) -> None:
        tensors[f"{FC}.weight"][:] = 1.0
        tensors[f"{FC}.weight"][:, :5] = 0.0  # five outputs
        tensors[f"{FC}.weight"][2] = 0.0  # one input

    pattern = checked(rewrite(base, tmp_path / "m", prune)).patterns[FC]
    assert (pattern.zero_rows, pattern.zero_columns) == (5, 1)


def two_of_four(rows: int, width: int) -> Any:
    """`[rows, width]` of ones and zeros with two ones in each group of four of a row."""
    draw = np.random.default_rng(0)
    groups = [draw.permutation([1.0, 1.0, 0.0, 0.0]) for _ in range(rows * width // 4)]
    return np.stack(groups).reshape(rows, width)


def test_n_of_m_runs_along_the_inputs(base: Path, tmp_path: Path):
    def along_inputs(tensors: Any) -> None:
        tensors[f"{FC}.weight"] = two_of_four(44, 24).T

    def along_outputs(tensors: Any) -> None:
        tensors[f"{FC}.weight"] = two_of_four(24, 44)

    assert checked(rewrite(base, tmp_path / "a", along_inputs)).patterns[FC].pattern.label == "2:4"
    found = checked(rewrite(base, tmp_path / "b", along_outputs)).patterns[FC].pattern
    assert found.kind == "unstructured"


def masks_of(model: CheckedModel) -> dict[str, Any]:
    return {
        li.module: model.masks.mask(li).rows(0, li.out_features).copy()
        for li in model.spec.linears()
    }


def test_masks_file_is_of_out_by_in(base: Path, tmp_path: Path):
    masks = masks_of(checked(base))
    masks[FC][7, 3] = True  # kept, wherever the weight is
    path = tmp_path / "masks.safetensors"
    write_masks(path, ((m, Mask.from_bool(kept)) for m, kept in masks.items()))
    model = checked(base, masks=path)
    assert np.array_equal(masks_of(model)[FC], masks[FC])


def test_value_outside_the_mask_is_named_by_output_and_input(base: Path, tmp_path: Path):
    masks = masks_of(checked(base))
    row, column = (int(i) for i in np.argwhere(masks[FC])[-1])
    masks[FC][row, column] = False
    path = tmp_path / "masks.safetensors"
    write_masks(path, ((m, Mask.from_bool(kept)) for m, kept in masks.items()))
    with pytest.raises(InputRefused) as caught:
        checked(base, masks=path)
    assert (caught.value.code, caught.value.tensor) == ("mask-mismatch", f"{FC}.weight")
    assert f"[{row}, {column}]" in caught.value.found


def test_value_that_is_not_finite_is_found(base: Path, tmp_path: Path):
    def spoil(tensors: Any) -> None:
        tensors[f"{FC}.weight"][23, 1] = np.nan

    with pytest.raises(InputRefused) as caught:
        checked(rewrite(base, tmp_path / "m", spoil))
    assert (caught.value.code, caught.value.tensor) == ("value-not-finite", f"{FC}.weight")
    assert "[23, 1]" in caught.value.found  # as it lies in the file


@given(data=st.data())
def test_columns_are_rows_of_the_transpose(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    """Whatever the block and however little is read at once."""
    rows, width = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 9))
    dtype = data.draw(st.sampled_from([DType.F32, DType.BF16, DType.F16, DType.F64]))
    c0 = data.draw(st.integers(0, width))
    c1 = data.draw(st.integers(c0, width))
    folder = tmp_path_factory.mktemp("columns")
    values = np.random.default_rng(rows).normal(size=(rows, width)).astype(dtype.numpy)
    other = np.arange(3, dtype=np.float32)
    write_safetensors(folder / "model.safetensors", {"a": other, "w": values}, {})
    (folder / "config.json").write_text("{}")
    model = Checkpoint.open(folder).arranged({"w": "weight"}, ["weight"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_CHUNK_BYTES", data.draw(st.sampled_from([1, 64, 1 << 20])))
        got = model.rows("weight", c0, c1)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    assert np.array_equal(got, values.astype(np.float32).T[c0:c1])
    assert np.array_equal(model.rows("weight"), values.astype(np.float32).T)
    assert np.array_equal(model.view("weight"), values)  # as it lies there
    for bad in ((-1, 1), (0, width + 1), (2, 1)):
        with pytest.raises(IndexError):
            model.rows("weight", *bad)


def test_renamed_tensors_keep_their_bytes(tmp_path: Path):
    values = {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
    save_file(values, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    plain = Checkpoint.open(tmp_path)
    plain.digests()
    other = plain.arranged({"a": "x.a"}, [])
    assert list(other.entries) == ["b", "x.a"] and other.entries["x.a"].name == "x.a"
    assert other.tensor_sha256("x.a") == plain.tensor_sha256("a")
    assert {n for d in other.digests() for n in d.tensors} == {"b", "x.a"}
    assert np.array_equal(other.rows("x.a"), values["a"])
