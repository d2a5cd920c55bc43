"""Planted faults in the written bytes: each is caught, and named as what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from exporter.model import LowRank
from exporter.verify.files import changed_files, fingerprints
from exporter.verify.result import StructureResult
from exporter.verify.structure import check_structure, parse_dtype
from tests.tiny import save_tiny
from tests.verify.fakes import Arrays, FakeTarget, MemoryModel, memory_model

Q, K = (f"model.layers.0.self_attn.{r}_proj.weight" for r in "qk")
UP, GATE, DOWN = (f"model.layers.1.mlp.{r}_proj.weight" for r in ("up", "gate", "down"))
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MemoryModel:
    folder = tmp_path_factory.mktemp("structure")
    return memory_model(save_tiny("llama2", folder, sparsity=0.7, tied=True))


def lowered(model: MemoryModel, folder: Path, **target: Any) -> tuple[FakeTarget, Path]:
    folder.mkdir(exist_ok=True)
    made = FakeTarget(**target)
    made.lower(model, folder)
    return made, folder


def check(model: MemoryModel, tmp_path: Path, **target: Any) -> StructureResult:
    made, folder = lowered(model, tmp_path / "out", **target)
    return check_structure(made, model, folder)


def test_a_sound_folder_passes_with_its_figures(model: MemoryModel, tmp_path: Path) -> None:
    found = check(model, tmp_path)
    weights = [t for t in model.tensors.values() if t.linear]
    total = sum(int(np.prod(t.shape)) for t in model.tensors.values())
    assert found.failures == ()
    assert (found.tensors, found.linears) == (len(model.tensors), 14)
    assert found.compared_values == total and found.tensor_bytes == 4 * total
    assert found.zeros == sum(round(0.7 * np.prod(t.shape)) for t in weights)
    assert found.kept_zeros == 0 and found.files == ("graph.json", "weights.bin")


def swap(a: str, b: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[a], arrays[b] = arrays[b], arrays[a]

    return change


def edit(name: str, function: Callable[[Any], Any]) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: function(arrays[name])})


def flip_bit(values: Any) -> Any:
    out = values.copy()
    place = np.flatnonzero(out)[5]
    out.view(np.uint32).ravel()[place] ^= 1
    return out


def shift_mask(values: Any) -> Any:
    """Zeros moved by one column, as a mask read one off would leave them."""
    return np.where(np.roll(values != 0, 1, axis=1), np.where(values == 0, 0.5, values), 0)


def negative_zero(values: Any) -> Any:
    return np.where(values == 0, np.float32(-0.0), values)


def bf16(values: Any) -> Any:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def drop(name: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.__delitem__(name)


def untie(arrays: Arrays) -> None:
    arrays["lm_head.weight"] = arrays[EMBEDDING]


FAULTS: list[tuple[str, Callable[[Arrays], None], tuple[str, ...]]] = [
    ("swapped tensors", swap(UP, GATE), (UP, f"it holds the values of {GATE}")),
    ("q and k swapped", swap(Q, K), (Q, f"it holds the values of {K}")),
    ("one bit", edit(NORM, flip_bit), (NORM, "one bit of one value differs")),
    ("one bit of a weight", edit(DOWN, flip_bit), (DOWN, "one bit of one value differs")),
    ("transposed", edit(DOWN, lambda v: v.T), (DOWN, "it is transposed")),
    ("transposed square", edit(Q, lambda v: v.T), (Q, "it is transposed")),
    ("scaled", edit(UP, lambda v: v * np.float32(0.5)), (UP, "0.5 times what it should be")),
    ("dropped", drop(UP), (UP, "is missing")),
    ("rounded twice", edit(UP, bf16), (UP, "rounded once more, to BF16")),
    ("untied head", untie, ("lm_head.weight", f"is tied to {EMBEDDING}")),
    ("stored twice", lambda a: a.update({f"{UP}#2": a[UP]}), (UP, "is stored twice")),
    ("unknown tensor", lambda a: a.update(odd=a[NORM]), ("odd", "is no tensor of the model")),
    ("mask off by one", edit(UP, shift_mask), (UP, "values outside the mask are not zero")),
    ("negative zeros", edit(UP, negative_zero), (UP, "values outside the mask are not zero")),
    ("rows cut off", edit(UP, lambda v: v[:-1]), (UP, "shape")),
    ("NaN", edit(NORM, lambda v: np.where(v == v[3], np.nan, v)), (NORM, "values differ")),
    ("reversed rows", edit(UP, lambda v: v[::-1]), (UP, "values differ")),
]


@pytest.mark.parametrize(("change", "words"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_planted_fault_is_caught_and_named(
    change: Callable[[Arrays], None], words: tuple[str, ...], model: MemoryModel, tmp_path: Path
) -> None:
    found = check(model, tmp_path, change=change)
    assert any(all(w in failure for w in words) for failure in found.failures), found.failures


def test_fault_in_a_late_row_block_is_found(
    model: MemoryModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.verify.structure.BLOCK_BYTES", 64 * 4 * 3)

    def last(values: Any) -> Any:
        values[-1, -1] += 1
        return values

    assert check(model, tmp_path).failures == ()
    assert any(UP in f for f in check(model, tmp_path, change=edit(UP, last)).failures)


def test_kept_zero_is_counted_and_no_fault(tmp_path: Path) -> None:
    made = memory_model(save_tiny("llama2", tmp_path / "m", sparsity=0.5))
    mask = made.own_masks[UP]
    kept = mask.rows()
    kept[np.argwhere(~kept)[0][0], np.argwhere(~kept)[0][1]] = True
    made.own_masks[UP] = type(mask).from_bool(kept)  # type: ignore[index]
    found = check(made, tmp_path)
    assert found.failures == () and found.kept_zeros == 1


@pytest.mark.parametrize("dtype", ["F32", "float32"])
def test_type_names(dtype: str, model: MemoryModel, tmp_path: Path) -> None:
    assert check(model, tmp_path, dtype=dtype).failures == ()


def test_other_types_are_named(model: MemoryModel, tmp_path: Path) -> None:
    assert "is stored as int8" in check(model, tmp_path, dtype="int8").failures[0]
    assert "bytes" in check(model, tmp_path, dtype="F16").failures[0]
    assert parse_dtype("nonsense") is None and parse_dtype("I64") is None


def test_branches_are_stored_once_each(tmp_path: Path) -> None:
    module = UP.removesuffix(".weight")
    draw = np.random.default_rng(0)
    branch = LowRank(
        draw.normal(size=(4, 64)).astype(np.float32),
        draw.normal(size=(160, 4)).astype(np.float32),
        0.25,
    )
    made = memory_model(save_tiny("llama2", tmp_path / "m"), {module: branch})
    a, b = f"{module}.branch.a", f"{module}.branch.b"
    assert check(made, tmp_path).failures == ()
    assert check(made, tmp_path, change=edit(b, lambda v: v * np.float32(0.25))).failures == ()
    for change, words in [
        (drop(a), f"factor A of the branch at {module} is missing"),
        (edit(b, lambda v: v * np.float32(0.5)), f"{b} is no factor"),
        (lambda x: x.update({f"{module}.branch.c": x[a]}), "stored twice"),
    ]:
        assert any(words in f for f in check(made, tmp_path, change=change).failures)


def test_files_missing_stray_and_linked(model: MemoryModel, tmp_path: Path) -> None:
    target, folder = lowered(model, tmp_path / "out")
    (folder / "tokenizer.json").write_text("{}")
    (folder / ".sparse-export").mkdir()
    (folder / ".sparse-export" / "selftest.safetensors").write_text("x")
    assert check_structure(target, model, folder).failures == ()
    (folder / "model.bin.tmp").write_text("left over")
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_text("left over")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "outside").symlink_to("/etc")
    found = "\n".join(check_structure(target, model, folder).failures)
    for words in (
        "model.bin.tmp does not belong here",
        "sub/x does not belong here",
        "link is not a plain file",
        "outside is not a plain file",
    ):
        assert words in found


def test_bytes_that_no_tensor_accounts_for(model: MemoryModel, tmp_path: Path) -> None:
    target, folder = lowered(model, tmp_path / "out")
    with (folder / "weights.bin").open("ab") as file:
        file.write(bytes(3 << 20))
    assert "something is stored twice" in check_structure(target, model, folder).failures[0]
    target, folder = lowered(model, tmp_path / "other")
    with (folder / "graph.json").open("a") as file:
        file.write(" " * (2 << 20))
    assert "graph.json" in check_structure(target, model, folder).failures[0]


def test_engine_that_writes_into_the_folder(model: MemoryModel, tmp_path: Path) -> None:
    _, folder = lowered(model, tmp_path / "out")
    before = fingerprints(folder)
    assert changed_files(folder, before) == []
    raw = bytearray((folder / "weights.bin").read_bytes())
    raw[0] ^= 1
    (folder / "weights.bin").write_bytes(raw)
    (folder / "cache.bin").write_text("x")
    assert changed_files(folder, before) == [
        "cache.bin was changed while the engine ran",
        "weights.bin was changed while the engine ran",
    ]


def test_zeros_of_all_linears_are_counted(model: MemoryModel, tmp_path: Path) -> None:
    found = check(model, tmp_path)
    assert found.zero_values == found.zeros + found.kept_zeros > 0
