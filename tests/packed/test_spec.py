"""config.json of a packed folder: read strictly, written as it is read."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given

from backends.packed.spec import PackedLinear, PackedModel, ValueType
from exporter.errors import InputRefused
from exporter.store.dtypes import DType
from tests.packed.make import sources

RAGGED = {"kind": "ragged", "values": "bf16", "shape": [17, 65], "nnz": 300}
NM = {"kind": "nm", "values": "int4", "shape": [16, 64], "nnz": 512, "n": 2, "m": 4, "group": 128}
DENSE = {"kind": "dense", "values": "int8", "shape": [3, 4], "nnz": 12, "group": 0}
MODEL = {
    "quant_method": "sparse-export",
    "format": "packed",
    "version": 1,
    "tile": [16, 64],
    "layers": {"a.q_proj": RAGGED, "a.k_proj": NM, "a.v_proj": DENSE},
}


def test_a_model_is_read_and_written_alike() -> None:
    model = PackedModel.parse(json.loads(json.dumps(MODEL)))
    assert model.to_json() == MODEL
    assert model.layers["a.k_proj"] == PackedLinear("nm", ValueType.INT4, (16, 64), 512, 2, 4, 128)
    assert PackedModel.parse({**MODEL, "layers": {}}).layers == {}


@given(sources())
def test_any_entry_is_read_and_written_alike(made) -> None:
    text = json.dumps(made.spec.to_json())
    assert PackedLinear.from_json("P", json.loads(text)) == made.spec


def test_parts_have_these_types_and_shapes() -> None:
    read = {m: PackedLinear.from_json(m, e) for m, e in MODEL["layers"].items()}
    assert read["a.q_proj"].tensors() == {
        "mask": (DType.U8, (2, 2, 128)),
        "values": (DType.BF16, (300,)),
        "offsets": (DType.I32, (2, 2)),
        "starts": (DType.I64, (3,)),
    }
    assert read["a.k_proj"].tensors() == {
        "mask": (DType.U8, (1, 1, 128)),
        "values": (DType.U8, (1, 1, 256)),
        "scales": (DType.BF16, (16, 1)),
    }
    assert read["a.v_proj"].tensors() == {
        "values": (DType.I8, (3, 4)),
        "scales": (DType.BF16, (3, 1)),
    }


@given(sources())
def test_what_is_packed_has_the_types_and_shapes_that_the_entry_tells(made) -> None:
    parts = made.pack()
    slots = int(parts["starts"][-1]) if "starts" in parts else None
    want = made.spec.tensors(slots)
    assert {p: (DType(want[p][0]), a.shape) for p, a in parts.items()} == want
    assert all(a.dtype == want[p][0].numpy for p, a in parts.items())


def test_ragged_int4_needs_its_slots() -> None:
    spec = PackedLinear("ragged", ValueType.INT4, (16, 64), 3)
    assert spec.tensors(4)["values"] == (DType.U8, (2,))
    with pytest.raises(ValueError, match="slots"):
        spec.tensors()


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("kind", "csr", "kind"),
        ("kind", 3, "kind"),
        ("kind", ["nm"], "kind"),
        ("values", "int2", "values"),
        ("values", None, "values"),
        ("shape", [16], "shape"),
        ("shape", "16x64", "shape"),
        ("shape", [16, 64.0], "shape"),
        ("shape", [16, True], "shape"),
        ("shape", [0, 64], "shape"),
        ("shape", [16, -64], "shape"),
        ("shape", [16, 1 << 40], "shape"),
        ("nnz", -1, "nnz"),
        ("nnz", 513, "nnz"),
        ("nnz", "512", "nnz"),
        ("n", 0, "0:4"),
        ("n", 4, "4:4"),
        ("n", None, "n is"),
        ("m", 5, "2:5"),
        ("m", 32, "2:32"),
        ("group", 32, "group"),
        ("group", -64, "group"),
        ("group", 1.5, "group"),
        ("extra", 1, "extra"),
    ],
)
def test_an_entry_that_is_not_right_is_refused(key, value, word) -> None:
    with pytest.raises(InputRefused) as caught:
        PackedLinear.from_json("layer.P", {**NM, key: value})
    assert (caught.value.code, caught.value.tensor) == ("packed-invalid", "layer.P")
    assert caught.value.file == "config.json" and word in caught.value.found


@pytest.mark.parametrize("key", sorted(NM))
def test_an_entry_that_lacks_a_key_is_refused(key) -> None:
    broken = {k: v for k, v in NM.items() if k != key}
    with pytest.raises(InputRefused) as caught:
        PackedLinear.from_json("P", broken)
    assert caught.value.code == "packed-invalid" and key in caught.value.found


@pytest.mark.parametrize(
    "entry",
    [
        {**RAGGED, "n": 2, "m": 4},
        {**RAGGED, "group": 0},
        {**RAGGED, "nnz": 17 * 65 + 1},
        {**DENSE, "nnz": 11},
        {**NM, "values": "bf16"},
        [RAGGED],
        None,
        {1: 2},
    ],
)
def test_keys_of_another_kind_and_impossible_counts_are_refused(entry) -> None:
    with pytest.raises(InputRefused, match="packed-invalid"):
        PackedLinear.from_json("P", entry)


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", 2), ("version", True), ("version", "1"), ("version", None), ("format", "csr")],
)
def test_another_version_is_refused_as_such(key, value) -> None:
    with pytest.raises(InputRefused) as caught:
        PackedModel.parse({**MODEL, key: value, "keys of the future": 1})
    assert caught.value.code == "packed-version" and "version 1" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quant_method", "gptq"),
        ("tile", [16, 32]),
        ("tile", "16x64"),
        ("layers", []),
        ("layers", {"P": {}}),
        ("unknown", 1),
    ],
)
def test_a_model_that_is_not_right_is_refused(key, value) -> None:
    broken: dict[str, Any] = {**copy.deepcopy(MODEL), key: value}
    with pytest.raises(InputRefused) as caught:
        PackedModel.parse(broken, "folder/config.json")
    assert (caught.value.code, caught.value.file) == ("packed-invalid", "folder/config.json")


def test_a_model_that_is_no_object_or_lacks_a_key_is_refused() -> None:
    for raw in (None, [], "packed", {k: v for k, v in MODEL.items() if k != "tile"}):
        with pytest.raises(InputRefused, match="packed-invalid"):
            PackedModel.parse(raw)


def test_a_module_name_is_printable_and_of_bounded_length() -> None:
    for name, code in (("a\x1b[2J", "header-invalid"), ("a" * 600, "limit-exceeded")):
        with pytest.raises(InputRefused) as caught:
            PackedModel.parse({**MODEL, "layers": {name: RAGGED}})
        assert caught.value.code == code


def test_fields_that_contradict_one_another_are_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="N:M"):
        PackedLinear("nm", ValueType.BF16, (16, 64), 0)
    with pytest.raises(ValueError, match="group"):
        PackedLinear("ragged", ValueType.BF16, (16, 64), 0, group=64)
    with pytest.raises(ValueError, match="kind"):
        PackedLinear("csr", ValueType.BF16, (16, 64), 0)  # type: ignore[arg-type]
