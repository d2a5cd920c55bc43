"""Values at the edge, through the command line: what is no weight is refused, the rest is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from exporter.cli import run
from tests.check.folder import Array, write_masks_file, write_safetensors
from tests.faults.asking import Ask, change, stored
from tests.tiny import save_tiny

FILE = "model.safetensors"
Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
UNUSED = 270  # a padding row of the embedding: no token of the tokenizer leads there

Tensors = dict[str, Array]
Change = Callable[[Tensors], object]


def at(name: str, index: Any, value: float) -> Change:
    def edit(tensors: Tensors) -> None:
        tensors[name][index] = value

    return edit


def to(name: str, value: Array) -> Change:
    return lambda tensors: tensors.update({name: value})


def float64(edit: Change) -> Change:
    def widen(tensors: Tensors) -> None:
        tensors.update({n: t.astype(np.float64) for n, t in tensors.items()})
        edit(tensors)

    return widen


# name -> (what is broken, code, tensor)
REFUSED: dict[str, tuple[Change, str, str]] = {
    "NaN in a linear": (at(Q, (3, 5), np.nan), "value-not-finite", Q),
    "infinity in a norm": (at(NORM, 7, np.inf), "value-not-finite", NORM),
    "-infinity in the embedding": (at(EMBEDDING, (9, 1), -np.inf), "value-not-finite", EMBEDDING),
    "float64 beyond float32": (float64(at(Q, (3, 5), 1e39)), "value-overflow", Q),
    "an empty tensor in place of one": (to(Q, np.zeros((0, 64), "f4")), "tensor-shape", Q),
    "a stray empty tensor": (to("x.weight", np.zeros(0, "f4")), "tensor-unexpected", "x.weight"),
    "rank 0 in place of a norm": (to(NORM, np.array(1.0, "f4")), "tensor-shape", NORM),
    "rank 1 in place of a linear": (to(Q, np.ones(4096, "f4")), "tensor-shape", Q),
    "rank 3 in place of a linear": (to(Q, np.ones((1, 64, 64), "f4")), "tensor-shape", Q),
    "huge aspect in place of a linear": (to(Q, np.ones((1, 4096), "f4")), "tensor-shape", Q),
    "integers in place of weights": (to(Q, np.ones((64, 64), "i1")), "model-quantised", Q),
    "truth values in place of weights": (to(Q, np.ones((64, 64), "?")), "dtype-unsupported", Q),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, single: Path, ask: Ask) -> None:
    edit, code, tensor = REFUSED[name]
    error = ask.refused(ask.copy(single, lambda r: change(r / FILE, edit)))
    assert (error["code"], error["file"], error["tensor"]) == (code, FILE, tensor)


# name -> (what is odd, its note or None): exported, verified, every value and zero as it was
KEPT: dict[str, tuple[Change, str | None]] = {
    "-0.0": (at(Q, (slice(None), slice(0, 8)), -0.0), "negative-zeros"),
    "denormals": (at(Q, (2, slice(None)), 1e-40), "denormals"),
    "an all-zero linear": (at(Q, ..., 0.0), "all-zero"),
    "an all-zero row": (at(DOWN, 5, 0.0), "zero-rows"),
    "an all-zero column": (at(DOWN, (slice(None), 5), 0.0), None),
    "an embedding of 65504": (at(EMBEDDING, 65, 65504.0), None),
    "float64 that float32 cannot tell from zero": (float64(at(Q, (2, 2), 1e-300)), None),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept(name: str, single: Path, ask: Ask) -> None:
    edit, note = KEPT[name]
    model = ask.copy(single, lambda r: change(r / FILE, edit))
    report = ask.published(model)
    notes = [n["what"] for n in report["model"]["notes"] if n["what"] != "dtype-not-of-config"]
    assert notes == ([note] if note else [])
    linears = {n: t for n, t in load_file(model / FILE).items() if "_proj." in n}
    zeros = sum(int((t == 0).sum()) for t in linears.values())
    assert report["verification"]["structure"]["zeros"] == zeros


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_largest_and_the_smallest_values_of_a_narrow_type(
    dtype: str, tmp_path: Path, ask: Ask
) -> None:
    """float32 holds every one of them: nothing is rounded, nothing overflows."""
    model = save_tiny("llama2", ask.inputs / dtype, dtype=dtype, sparsity=0.5)
    info = ml_dtypes.finfo(dtype)

    def edit(tensors: Tensors) -> None:
        tensors[EMBEDDING][UNUSED] = info.max
        tensors[EMBEDDING][UNUSED, ::2] = info.min
        tensors[Q][1] = info.smallest_subnormal

    change(model / FILE, edit)
    report = ask.published(model)
    assert {n["what"] for n in report["model"]["notes"]} == {"denormals"}
    data = np.fromfile(ask.out / "model.data", np.float32)
    assert float(np.abs(data).max()) == float(info.max)


def test_values_that_overflow_when_run_are_not_published(ask: Ask) -> None:
    """Finite weights, infinite logits: no engine can be right about them."""
    model = save_tiny("llama2", ask.inputs / "model", dtype="bfloat16")
    most = float(ml_dtypes.finfo("bfloat16").max)
    change(model / FILE, at(DOWN, (slice(None), slice(0, 8)), most))
    error = ask.refused(model, exit_code=1)
    assert error["code"] in ("verify-numbers", "reference-broken")


def test_a_huge_aspect(ask: Ask) -> None:
    model = save_tiny(
        "llama2", ask.inputs / "model", sparsity=0.5, hidden_size=8, intermediate_size=4096
    )
    assert ask.published(model)["verification"]["structure"]["linears"] == 14


# --- patterns --------------------------------------------------------------------------------


def two_of_four(array: Array) -> Array:
    """The two smallest of every four inputs set to zero; a ragged end stays as it is."""
    out = array.copy()
    whole = out.shape[1] // 4 * 4
    groups = out[:, :whole].reshape(out.shape[0], -1, 4)
    np.put_along_axis(groups, np.abs(groups).argsort(-1)[..., :2], 0.0, -1)
    out[:, :whole] = groups.reshape(out.shape[0], whole)
    return out


def pruned(how: Callable[[Array], Array]) -> Callable[[Path], None]:
    def edit(tensors: Tensors) -> None:
        for name in [n for n in tensors if "_proj." in n]:
            tensors[name] = np.ascontiguousarray(how(tensors[name]))

    return lambda folder: change(folder / FILE, edit)


def patterns(ask: Ask, model: Path) -> dict[str, Any]:
    """What `inspect --json` says, by tensor."""
    import json

    ask.capsys.readouterr()
    assert run(["inspect", str(model), "--json"]) == 0
    report = json.loads(ask.capsys.readouterr().out)
    return {f"{x['module']}.weight": x for x in report["linears"]} | {"all": report["totals"]}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No zero anywhere; 150 inputs of down_proj, which is no multiple of 4."""
    folder = tmp_path_factory.mktemp("dense") / "model"
    return save_tiny("llama2", folder, intermediate_size=150)


def test_two_of_four_along_the_inputs(dense: Path, ask: Ask) -> None:
    model = ask.copy(dense, pruned(two_of_four))
    found = patterns(ask, model)
    assert found["all"]["pattern"] == "2:4"
    assert found[DOWN]["group_max"]["4"] == 2
    report = ask.published(model)
    assert report["model"]["pattern"].startswith("2:4")


def test_two_of_four_along_the_outputs_only(dense: Path, ask: Ask) -> None:
    """No engine's 2:4 kernels take it: it must not be called 2:4."""
    model = ask.copy(dense, pruned(lambda array: two_of_four(array.T).T))
    found = patterns(ask, model)
    assert {x["pattern"] for x in found.values()} == {"unstructured"}
    assert found[Q]["group_max"]["4"] > 2
    assert ask.published(model)["model"]["pattern"].startswith("unstructured")


def test_three_kept_in_one_group_of_all(dense: Path, ask: Ask) -> None:
    """One group of 25,600 breaks 2:4, and is found."""
    model = ask.copy(dense, pruned(two_of_four))
    weight = stored(model / FILE, Q)
    column = int(np.flatnonzero(weight[63, 60:] == 0)[0]) + 60
    change(model / FILE, at(Q, (63, column), 0.5))
    found = patterns(ask, model)
    assert found[Q]["pattern"] != "2:4"
    assert found[Q]["group_max"]["4"] == 3
    assert [n for n in found if n != "all" and found[n]["pattern"] != "2:4"] == [Q]
    assert not ask.published(model)["model"]["pattern"].startswith("2:4")


def test_a_width_that_is_no_multiple_of_four(dense: Path, ask: Ask) -> None:
    report = ask.published(dense)
    assert report["model"]["pattern"].startswith("dense")


# --- masks files -----------------------------------------------------------------------------


def masks_of(model: Path) -> Tensors:
    """By module: where the weight is not zero."""
    tensors = load_file(model / FILE)
    return {n.removesuffix(".weight"): t != 0 for n, t in tensors.items() if "_proj." in n}


def test_a_stored_zero_that_the_mask_keeps(single: Path, ask: Ask) -> None:
    model = ask.copy(single)
    masks = masks_of(model)
    row, column = np.argwhere(~masks[Q.removesuffix(".weight")])[0]
    masks[Q.removesuffix(".weight")][row, column] = True
    file = write_masks_file(ask.inputs / "masks.safetensors", masks)
    report = ask.published(model, "--masks", str(file))
    assert [(n["tensor"], n["what"], n["count"]) for n in report["model"]["notes"]] == [
        (Q, "kept-zeros", 1)
    ]
    assert report["verification"]["structure"]["kept_zeros"] == 1


def test_a_value_that_the_mask_prunes(single: Path, ask: Ask) -> None:
    model = ask.copy(single)
    masks = masks_of(model)
    row, column = np.argwhere(masks[Q.removesuffix(".weight")])[0]
    masks[Q.removesuffix(".weight")][row, column] = False
    file = write_masks_file(ask.inputs / "masks.safetensors", masks)
    error = ask.refused(model, "--masks", str(file))
    assert (error["code"], error["file"]) == ("mask-mismatch", file.name)
    assert error["tensor"] == Q


def test_a_masks_file_that_lacks_a_module(single: Path, ask: Ask) -> None:
    model = ask.copy(single)
    masks = masks_of(model)
    del masks[Q.removesuffix(".weight")]
    file = write_masks_file(ask.inputs / "masks.safetensors", masks)
    error = ask.refused(model, "--masks", str(file))
    assert (error["code"], error["file"]) == ("mask-invalid", file.name)
    assert error["tensor"].startswith(Q)


def test_a_masks_file_with_a_padding_bit_or_another_value(dense: Path, ask: Ask) -> None:
    model = ask.copy(dense)
    packed = {f"{m}.weight_mask": np.packbits(k, axis=1) for m, k in masks_of(model).items()}
    name = DOWN + "_mask"
    packed[name][0, -1] |= 1  # 150 inputs leave two bits of padding
    file = write_safetensors(ask.inputs / "masks.safetensors", packed)
    error = ask.refused(model, "--masks", str(file))
    assert (error["code"], error["file"], error["tensor"]) == ("mask-invalid", file.name, name)
