"""Masks files: each sentence of docs/formats/masks.md, each fault with its typed error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.errors import InputRefused
from exporter.sparsity.mask import Mask
from exporter.store.masks import MasksFile, write_masks
from tests.check.folder import write_safetensors

SHAPES = {"a.q_proj": (5, 19), "a.o_proj": (3, 16)}
RNG = np.random.default_rng(0)
KEPT = {m: RNG.random(s) > 0.5 for m, s in SHAPES.items()}


def packed() -> dict[str, np.ndarray]:
    return {f"{m}.weight_mask": np.packbits(k, axis=1) for m, k in KEPT.items()}


def load(tmp_path, arrays, shapes=None) -> dict[str, Mask]:
    shapes = shapes or SHAPES
    file = MasksFile.open(write_safetensors(tmp_path / "m.safetensors", arrays), shapes)
    return {m: file.mask(m) for m in shapes}


def refused(tmp_path, arrays, shapes=None) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        load(tmp_path, arrays, shapes)
    error = caught.value
    assert (error.code, error.file) == ("mask-invalid", "m.safetensors")
    return error


def is_kept(masks: dict[str, Mask]) -> bool:
    return all(masks[m] == Mask.from_bool(k) for m, k in KEPT.items())


def test_packed_bits(tmp_path) -> None:
    assert is_kept(load(tmp_path, packed()))


def test_the_first_input_is_the_highest_bit(tmp_path) -> None:
    bits = np.array([[0b1000_0001, 0b0100_0000]], np.uint8)
    mask = load(tmp_path, {"x.weight_mask": bits}, {"x": (1, 10)})["x"]
    assert np.flatnonzero(mask.rows()[0]).tolist() == [0, 7, 9]


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
def test_plain_values(tmp_path, dtype) -> None:
    assert is_kept(load(tmp_path, {f"{m}.weight_mask": k.astype(dtype) for m, k in KEPT.items()}))


def test_one_file_may_hold_both_forms(tmp_path) -> None:
    assert is_kept(load(tmp_path, packed() | {"a.q_proj.weight_mask": KEPT["a.q_proj"]}))


def test_one_input_is_ambiguous_in_u8_only(tmp_path) -> None:
    ones = np.ones((4, 1), np.uint8)
    error = refused(tmp_path, {"x.weight_mask": ones}, {"x": (4, 1)})
    assert "packed bits or plain" in error.found
    assert load(tmp_path, {"x.weight_mask": ones.view(bool)}, {"x": (4, 1)})["x"].kept == 4


def test_an_unknown_module(tmp_path) -> None:
    error = refused(tmp_path, packed() | {"b.q_proj.weight_mask": np.zeros((1, 1), np.uint8)})
    assert error.tensor == "b.q_proj.weight_mask"


@pytest.mark.parametrize("name", ["a.q_proj", "a.q_proj.mask", ".weight_mask", "a.q_proj.weight"])
def test_another_tensor(tmp_path, name) -> None:
    assert refused(tmp_path, packed() | {name: np.zeros((1, 1), np.uint8)}).tensor == name


def test_a_missing_module(tmp_path) -> None:
    arrays = packed()
    del arrays["a.o_proj.weight_mask"]
    error = refused(tmp_path, arrays)
    assert (error.tensor, error.found) == ("a.o_proj.weight_mask", "1 of 2 masks are missing")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 2), np.uint8),
        np.zeros((19, 5), np.uint8),
        np.zeros((3, 5), np.uint8),
        np.zeros((5, 3, 1), np.uint8),
        np.zeros(15, np.uint8),
        np.zeros((5, 3), np.bool_),
        np.zeros((5, 3), np.int8),
        np.zeros((5, 19), np.float32),
        np.zeros((5, 19), np.int8),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_another_type_or_shape(tmp_path, array) -> None:
    error = refused(tmp_path, packed() | {"a.q_proj.weight_mask": array})
    assert error.tensor == "a.q_proj.weight_mask"
    assert error.expected == "U8[5, 3] of packed bits, or BOOL[5, 19]"


@pytest.mark.parametrize("bit", [0, 4])
def test_a_padding_bit(tmp_path, bit) -> None:
    arrays = packed()
    arrays["a.q_proj.weight_mask"][3, 2] |= 1 << bit
    assert "padding bit of row 3" in refused(tmp_path, arrays).found


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
def test_a_plain_value_that_is_neither(tmp_path, dtype) -> None:
    bad = KEPT["a.q_proj"].astype(np.uint8)
    bad[2, 2] = 255
    error = refused(tmp_path, packed() | {"a.q_proj.weight_mask": bad.view(dtype)})
    assert error.found == "the value 255"


@settings(max_examples=25, deadline=None)  # each file is synced to disk
@given(
    kept=st.dictionaries(
        st.text("ab.", min_size=1, max_size=6),
        hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(2, 40))),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_written_is_read_back(tmp_path_factory, kept) -> None:
    path = tmp_path_factory.mktemp("masks") / "m.safetensors"
    taken: list[str] = []

    def one_by_one():
        for module, values in kept.items():
            taken.append(module)
            yield module, Mask.from_bool(values)

    record = write_masks(path, one_by_one())
    assert (record.name, record.nbytes) == (path.name, path.stat().st_size)
    assert taken == list(kept)
    file = MasksFile.open(path, {m: v.shape for m, v in kept.items()})
    assert all(file.mask(m) == Mask.from_bool(v) for m, v in kept.items())


def test_equal_masks_give_equal_bytes_and_no_other_file(tmp_path) -> None:
    masks = [(m, Mask.from_bool(k)) for m, k in KEPT.items()]
    for name in ("one", "two"):
        write_masks(tmp_path / name, masks)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"one", "two"}


def test_safetensors_itself_reads_what_is_written(tmp_path) -> None:
    from safetensors.numpy import load_file

    write_masks(tmp_path / "m.safetensors", [(m, Mask.from_bool(k)) for m, k in KEPT.items()])
    got = load_file(tmp_path / "m.safetensors")
    assert got.keys() == packed().keys()
    assert all(np.array_equal(got[n], a) for n, a in packed().items())


def test_a_module_given_twice_is_a_fault_of_the_caller(tmp_path) -> None:
    mask = Mask.from_bool(KEPT["a.q_proj"])
    with pytest.raises(ValueError, match="two masks"):
        write_masks(tmp_path / "m.safetensors", [("a", mask), ("a", mask)])


def test_a_folder_that_is_not_there(tmp_path) -> None:
    with pytest.raises(InputRefused) as caught:
        write_masks(tmp_path / "no" / "m.safetensors", [])
    assert caught.value.code == "output-failed"


def test_a_file_cut_short_after_its_header_was_read(tmp_path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", packed())
    file = MasksFile.open(path, SHAPES)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputRefused) as caught:
        for module in SHAPES:
            file.mask(module)
    assert caught.value.code == "input-unreadable"


def test_the_safetensors_library_can_write_one_and_metadata_is_not_read(tmp_path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "m.safetensors"
    save_file(packed(), path, metadata={"format": "unpacked", "density": "0.9"})
    file = MasksFile.open(path, SHAPES)
    assert is_kept({m: file.mask(m) for m in SHAPES})


def test_modules_stay_in_the_order_given(tmp_path) -> None:
    for order in (list(KEPT), list(KEPT)[::-1]):
        path = tmp_path / order[0]
        write_masks(path, [(m, Mask.from_bool(KEPT[m])) for m in order])
        header = path.read_bytes()
        assert [header.index(m.encode()) for m in order] == sorted(
            header.index(m.encode()) for m in order
        )
