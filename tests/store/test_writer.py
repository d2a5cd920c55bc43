"""The writer: what it writes loads elsewhere bit for bit; what it must not write, it refuses."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from exporter.errors import InputRefused
from exporter.store.dtypes import DType
from exporter.store.header import read_header
from exporter.store.writer import (
    RawWriter,
    SafetensorsWriter,
    aligned,
    dtype_of,
    write_safetensors,
)

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LETTERS = st.text(st.characters(categories=["L"]), max_size=4)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=8),
        st.tuples(st.sampled_from(list(DType)), st.lists(st.integers(0, 5), max_size=3)),
        max_size=6,
    ),
    st.dictionaries(
        st.text(st.characters(categories=["L"]), max_size=4), st.text('xyz\n"'), max_size=4
    ),
    st.integers(1, 3),
)
def test_blocks_load_in_the_library(
    tmp_path: Path, spec: dict[str, tuple[DType, list[int]]], metadata: dict[str, str], step: int
) -> None:
    spec.pop("__metadata__", None)
    layout = aligned((n, dtype, tuple(shape)) for n, (dtype, shape) in spec.items())
    rng = np.random.default_rng(0)
    path = tmp_path / "x.safetensors"
    path.unlink(missing_ok=True)
    wanted: dict[str, bytes] = {}
    with SafetensorsWriter(path, layout, metadata) as writer:
        for name, dtype, shape in layout:
            raw = rng.integers(0, 2, int(np.prod(shape)) * dtype.nbytes, dtype=np.uint8)
            values = raw.view(dtype.numpy).reshape(shape)
            wanted[name] = values.tobytes()
            if not shape:
                writer.write(name, values)
            for r0 in range(0, shape[0] if shape else 0, step):
                writer.write(name, values[r0 : r0 + step])
        record = writer.close()
    assert (record.nbytes, record.sha256) == (path.stat().st_size, sha256(path))
    ours = read_header(path)
    data = path.read_bytes()
    assert {n: data[e.start : e.end] for n, e in ours.entries.items()} == wanted
    assert ours.metadata == metadata
    with safe_open(path, "np") as theirs:
        assert set(theirs.keys()) == set(wanted)
        assert (theirs.metadata() or {}) == metadata
        for name in wanted:
            found = theirs.get_slice(name)
            assert tuple(found.get_shape()) == ours.entries[name].shape
            assert found.get_dtype() == ours.entries[name].dtype.value


def test_library_gives_the_same_values(tmp_path: Path) -> None:
    tensors = {
        "u8": np.arange(3, dtype=np.uint8),
        "bf16": MATRIX.astype(ml_dtypes.bfloat16),
        "f32": MATRIX,
        "scalar": np.float64(7).reshape(()),
        "empty": np.zeros((0, 4), np.int64),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, values in tensors.items():
        assert loaded[name].dtype == values.dtype and (loaded[name] == values).all()


def test_torch_can_map_every_tensor(tmp_path: Path) -> None:
    """Odd numbers of bytes first in the given order: the file orders them so that all align."""
    from safetensors.torch import load_file as load_torch

    write_safetensors(tmp_path / "x.safetensors", {"m": np.ones(3, np.uint8), "w": MATRIX})
    assert load_torch(tmp_path / "x.safetensors")["w"].tolist() == MATRIX.tolist()


def test_same_bytes_whatever_the_order_of_metadata(tmp_path: Path) -> None:
    keys = [f"key{i}" for i in range(20)]
    for name, order in (("a", keys), ("b", keys[::-1])):
        write_safetensors(tmp_path / name, {"w": MATRIX}, {k: k for k in order})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_header(tmp_path / "a").entries["w"].start % 8 == 0


@pytest.mark.parametrize(
    "view",
    [
        MATRIX.T,
        MATRIX[:, ::2],
        MATRIX[::-1],
        np.asfortranarray(MATRIX),
        np.broadcast_to(MATRIX[:1], (64, 4)),
    ],
    ids=["transposed", "strided", "reversed", "fortran", "broadcast"],
)
def test_arrays_out_of_order_are_refused(view: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="C-contiguous"):
        write_safetensors(tmp_path / "x", {"w": view})
    with RawWriter(tmp_path / "raw") as raw, pytest.raises(ValueError, match="C-contiguous"):
        raw.write(view)
    with RawWriter(tmp_path / "mem") as raw, pytest.raises(ValueError, match="C-contiguous"):
        raw.write(memoryview(b"abcdef")[::2])


def test_blocks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    layout = [("w", DType.F32, (3, 4)), ("v", DType.F32, (2,))]
    with SafetensorsWriter(tmp_path / "x", layout) as writer:
        for name, block, reason in (
            ("v", np.zeros(2, np.float32), "turn of w"),
            ("w", np.zeros((3, 4), np.float64), "float64"),
            ("w", np.zeros((3, 4), ">f4"), "expected"),
            ("w", np.zeros((4, 3), np.float32), "shape"),
            ("w", np.zeros(12, np.float32), "shape"),
            ("w", np.zeros((4, 4), np.float32), "only 12"),
            ("nope", np.zeros((0, 4), np.float32), "turn of w"),
        ):
            with pytest.raises(ValueError, match=reason):
                writer.write(name, block)
        writer.write("w", MATRIX)
        with pytest.raises(ValueError, match="v lacks 2"):
            writer.close()
    with SafetensorsWriter(tmp_path / "y", layout[:1]) as writer:
        writer.write("w", MATRIX)
        with pytest.raises(ValueError, match="complete"):
            writer.write("w", MATRIX[:1])
        writer.close()


@pytest.mark.parametrize(
    ("layout", "metadata", "reason"),
    [
        ([("a", DType.U8, (1,)), ("a", DType.U8, (1,))], {}, "twice"),
        ([("__metadata__", DType.U8, (1,))], {}, "twice"),
        ([("a", DType.U8, (3,)), ("b", DType.F32, (1,))], {}, "aligned"),
        ([], {"a": 1}, "text"),
    ],
)
def test_layouts_that_cannot_be(
    layout: list[tuple[str, DType, tuple[int, ...]]],
    metadata: dict[str, str],
    reason: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=reason):
        SafetensorsWriter(tmp_path / "x", layout, metadata)
    assert not (tmp_path / "x").exists()


def test_types_without_a_name() -> None:
    for dtype in (np.complex64, ">f4", "U4", np.float128):
        with pytest.raises(ValueError, match="no type"):
            dtype_of(np.zeros(2, dtype))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_mode_follows_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_safetensors(tmp_path / "x", {"w": MATRIX})
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


def test_raw_writer(tmp_path: Path) -> None:
    """Small and large writes, padding, and a caller that reuses its buffer at once."""
    parts = [b"abc", bytes(range(256)) * 40_000, b"", b"end"]
    with RawWriter(tmp_path / "x") as writer:
        assert writer.pad_to(64) == 0
        for part in parts:
            buffer = bytearray(part)
            writer.write(buffer)
            buffer[:] = bytes(len(buffer))
        assert writer.offset == sum(map(len, parts))
        assert writer.pad_to(4096) % 4096 == 0
        record = writer.close()
    data = (tmp_path / "x").read_bytes()
    assert data.rstrip(b"\0") == b"".join(parts)
    assert (record.name, record.nbytes, record.sha256) == ("x", len(data), sha256(tmp_path / "x"))
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"")


def test_links_and_files_that_are_there_are_not_written(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("old")
    (tmp_path / "link").symlink_to("victim")
    for name in ("victim", "link", "no/such/folder"):
        with pytest.raises(InputRefused) as caught:
            RawWriter(tmp_path / name)
        assert caught.value.code == "output-failed"
    assert (tmp_path / "victim").read_text() == "old"


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_or_broken_disk_is_typed(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    writer = RawWriter(tmp_path / "x")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(InputRefused) as caught:
        writer.write(b"abcdef")
        writer.close()
    monkeypatch.undo()
    writer.abort()
    assert caught.value.code == "output-failed" and caught.value.file == "x"
    if number == errno.ENOSPC:
        assert "bytes free" in caught.value.found
        assert call == "fsync" or caught.value.expected == "at least 6 bytes more"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:5]))
    with RawWriter(tmp_path / "x") as writer:
        writer.write(bytes(range(200)))
        record = writer.close()
    assert (tmp_path / "x").read_bytes() == bytes(range(200))
    assert record.sha256 == sha256(tmp_path / "x")
