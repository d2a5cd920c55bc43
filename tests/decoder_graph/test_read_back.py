"""The reader takes nothing on trust: records that lead elsewhere, overlap or lie are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from backends.decoder_graph.external import record as record_of
from backends.decoder_graph.read_back import read_back
from exporter.errors import VerificationFailed
from exporter.limits import LIMITS

W = np.arange(12, dtype=np.float32).reshape(3, 4)


def write_graph(
    folder: Path,
    nodes: list[onnx.NodeProto] | None = None,
    change: Callable[[onnx.TensorProto], Any] = lambda tensor: None,
    more: tuple[onnx.TensorProto, ...] = (),
) -> Path:
    """A graph of one external weight `w [3, 4]`; `change` spoils its record."""
    (folder / "model.data").write_bytes(bytes(64) + W.tobytes())
    tensor = TensorProto(name="w", data_type=1, dims=W.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "model.data"), ("offset", "64"), ("length", "48")):
        tensor.external_data.add(key=key, value=value)
    change(tensor)
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [], [tensor, *more])
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    return folder


def record(**entries: str | None) -> Callable[[onnx.TensorProto], None]:
    """Replace (or, with None, remove) entries of the external record."""

    def change(tensor: onnx.TensorProto) -> None:
        kept = {e.key: e.value for e in tensor.external_data} | entries
        del tensor.external_data[:]
        for key, value in kept.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)

    return change


@pytest.mark.parametrize(
    ("node", "transposed"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"]), True),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), False),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=0), True),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), True),
        (helper.make_node("Gather", ["w", "i"], ["y"]), False),
    ],
    ids=lambda v: v.op_type if isinstance(v, onnx.NodeProto) else str(v),
)
def test_orientation_follows_from_the_graph(node: onnx.NodeProto, transposed: bool, tmp_path: Path):
    (tensor,) = read_back(write_graph(tmp_path, [node]))
    wanted = W.T if transposed else W
    assert tensor.shape == wanted.shape and tensor.nbytes == 48
    assert np.array_equal(tensor.rows(0, wanted.shape[0]), wanted)


@settings(max_examples=30)
@given(st.data())
def test_any_rows_are_right(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("rows")
    transposed = data.draw(st.booleans())
    op = helper.make_node("MatMul" if transposed else "Gather", ["w", "w"], ["y"])
    op.input[0 if transposed else 1] = "x"
    (tensor,) = read_back(write_graph(folder, [op]))
    wanted = W.T if transposed else W
    r0, r1 = sorted(data.draw(st.tuples(*[st.integers(0, len(wanted))] * 2)))
    assert np.array_equal(tensor.rows(r0, r1), wanted[r0:r1])
    with pytest.raises(IndexError):
        tensor.rows(0, len(wanted) + 1)


BAD_RECORDS: dict[str, Callable[[onnx.TensorProto], Any]] = {
    "absolute": record(location="/etc/passwd"),
    "parent": record(location="../model.data"),
    "folder": record(location="sub/model.data"),
    "backslash": record(location="..\\model.data"),
    "drive": record(location="C:model.data"),
    "dots": record(location=".."),
    "empty": record(location=""),
    "nul": record(location="model.data\0"),
    "none": record(location=None),
    "absent": record(location="other.data"),
    "link": record(location="link.data"),
    "pipe": record(location="pipe.data"),
    "beyond": record(offset="65"),
    "far": record(offset="99999999999999"),
    "endless": record(offset="9" * 5000),
    "negative": record(offset="-64"),
    "word": record(offset="0x40"),
    "no offset": record(offset=None),
    "short": record(length="44"),
    "long": record(length="52"),
    "no length": record(length=None),
    "float16": lambda tensor: setattr(tensor, "data_type", TensorProto.FLOAT16),
    "zero": lambda tensor: tensor.dims.append(0),
    "minus": lambda tensor: tensor.dims.append(-1),
    "huge": lambda tensor: tensor.dims.append(1 << 60),
    "scalar": lambda tensor: tensor.ClearField("dims"),
    "twice": lambda tensor: tensor.external_data.add(key="offset", value="0"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_record_is_refused(case: str, tmp_path: Path):
    outside = tmp_path / "outside.data"
    outside.write_bytes(bytes(200))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.data").symlink_to(outside)
    os.mkfifo(folder / "pipe.data")
    write_graph(folder, change=BAD_RECORDS[case])
    with pytest.raises(VerificationFailed) as caught:
        list(read_back(folder))
    assert (caught.value.code, caught.value.tensor) in (
        ("verify-structure", "w"),
        ("verify-structure", None),
    )


def matmul(*names: str) -> list[onnx.NodeProto]:
    return [helper.make_node("MatMul", ["x", name], [f"y{i}"]) for i, name in enumerate(names)]


def _shifted() -> TensorProto:
    tensor = TensorProto(name="v", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    record(location="model.data", offset="104", length="8")(tensor)
    return tensor


@pytest.mark.parametrize(
    ("nodes", "more", "text"),
    [
        ([helper.make_node("Relu", ["x"], ["y"])], (), "no node reads"),
        ([helper.make_node("Relu", ["w"], ["y"])], (), "Relu reads"),
        ([helper.make_node("MatMul", ["w", "x"], ["y"])], (), "MatMul reads"),
        (
            [*matmul("w"), helper.make_node("Gather", ["w", "i"], ["z"])],
            (),
            "two orientations",
        ),
        (None, (numpy_helper.from_array(W, "w"),), "twice"),
        ([*matmul("w"), helper.make_node("Add", ["x", "v"], ["z"])], (_shifted(),), "overlap"),
        (
            [*matmul("w"), helper.make_node("Constant", [], ["c"], value=_shifted())],
            (),
            "holds a graph or weights",
        ),
    ],
)
def test_bad_graph_is_refused(
    nodes: list[onnx.NodeProto] | None, more: tuple[TensorProto, ...], text: str, tmp_path: Path
):
    with pytest.raises(VerificationFailed, match=text):
        list(read_back(write_graph(tmp_path, nodes, more=more)))


def test_graph_behind_a_link_is_refused(tmp_path: Path):
    write_graph(tmp_path)
    (tmp_path / "model.onnx").rename(tmp_path / "real.onnx")
    (tmp_path / "model.onnx").symlink_to(tmp_path / "real.onnx")
    with pytest.raises(VerificationFailed, match="cannot be opened"):
        list(read_back(tmp_path))


def test_missing_graph_is_refused(tmp_path: Path):
    with pytest.raises(VerificationFailed, match="cannot be opened"):
        list(read_back(tmp_path))


@given(st.binary(min_size=1, max_size=200))
def test_junk_is_refused_or_empty(tmp_path_factory: pytest.TempPathFactory, junk: bytes):
    folder = tmp_path_factory.mktemp("junk")
    (folder / "model.onnx").write_bytes(junk)
    try:
        assert list(read_back(folder)) == []
    except VerificationFailed as error:
        assert error.code == "verify-structure"


def test_file_cut_after_the_check_is_refused(tmp_path: Path):
    (tensor,) = read_back(write_graph(tmp_path))
    (tmp_path / "model.data").write_bytes(bytes(100))
    with pytest.raises(VerificationFailed, match="ends at byte"):
        tensor.rows(0, 4)
    with pytest.raises(VerificationFailed, match="ends at byte"):
        tensor.sha256()


def test_digest_is_of_the_stored_bytes(tmp_path: Path):
    import hashlib

    (tensor,) = read_back(write_graph(tmp_path))
    assert tensor.sha256() == hashlib.sha256(W.tobytes()).hexdigest()
    assert (tensor.file, tensor.dtype) == ("model.data", "F32")


def test_one_axis_may_be_longer_than_a_matrix_is_wide(tmp_path: Path):
    """The values of a large ragged linear; the file is one hole."""
    count = LIMITS.dim + 1
    with (tmp_path / "model.data").open("wb") as file:
        file.truncate(2 * count)
    tensor = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=[count])
    for key, value in (("location", "model.data"), ("offset", "0"), ("length", str(2 * count))):
        tensor.external_data.add(key=key, value=value)
    assert record_of(tmp_path, tensor).array().shape == (count,)
    tensor.dims[:] = [count, 1]
    with pytest.raises(VerificationFailed, match="shape"):
        record_of(tmp_path, tensor)
