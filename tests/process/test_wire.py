"""The frames: what is sent arrives, and what is not a frame is refused."""

from __future__ import annotations

import ast
import contextlib
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import backends.deepsparse
import backends.process
from backends.process import wire

DTYPES = st.sampled_from(["float32", "float64", "int64", "int32"])


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        with contextlib.suppress(OSError):
            os.close(fd)


def through_a_pipe(
    header: dict[str, object], arrays: dict[str, object]
) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    read, write = os.pipe()
    sender = threading.Thread(target=wire.send, args=(write, header, arrays))
    sender.start()
    try:
        return wire.receive(read, 30)
    finally:
        sender.join()
        os.close(read)
        os.close(write)


@settings(max_examples=40, deadline=None)
@given(
    arrays=st.dictionaries(
        st.text(max_size=8),
        DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0))),
        max_size=4,
    ),
    header=st.dictionaries(
        st.sampled_from(["op", "tokens", "n"]), st.integers() | st.text() | st.lists(st.integers())
    ),
)
def test_what_is_sent_arrives(header: dict[str, object], arrays: dict[str, object]) -> None:
    got, received = through_a_pipe(header, arrays)
    assert got == header
    assert list(received) == list(arrays)
    for name, array in arrays.items():
        assert received[name].dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(received[name], np.asarray(array))


def test_more_than_a_pipe_holds_and_other_layouts() -> None:
    big = np.arange(3 << 20, dtype=np.float32).reshape(3, -1).T
    swapped = np.arange(5, dtype=">i8")
    _, received = through_a_pipe({}, {"big": big, "swapped": swapped})
    np.testing.assert_array_equal(received["big"], big)
    np.testing.assert_array_equal(received["swapped"], swapped)
    received["big"][0, 0] = 1  # ours to write


def frame(header: bytes, body: bytes = b"", claim: int | None = None) -> bytes:
    return struct.pack("<4sIQ", wire.MAGIC, len(header), claim or len(body)) + header + body


@pytest.mark.parametrize(
    "raw",
    [
        b"hello, I am an engine's banner",
        frame(b"{"),
        frame(b"[]"),
        frame(b"{}"),
        frame(b'{"arrays": [["x", "float32"]]}'),
        frame(b'{"arrays": [["x", "object", [1]]]}', b"12345678"),
        frame(b'{"arrays": [["x", "float32", [2]]]}', b"1234"),
        frame(b'{"arrays": [["x", "float32", [-1]]]}', b"1234"),
        frame(b'{"arrays": []}', claim=1 << 60),
        struct.pack("<4sIQ", wire.MAGIC, (1 << 32) - 1, 0) + b"x" * 40,
    ],
)
def test_what_is_no_frame_is_refused(pipe: tuple[int, int], raw: bytes) -> None:
    os.write(pipe[1], raw)
    with pytest.raises(wire.WireError):
        wire.receive(pipe[0], 5)


@pytest.mark.parametrize("sent", [b"", wire.MAGIC, frame(b'{"arrays": []}')[:-3]])
def test_the_end_in_the_middle(pipe: tuple[int, int], sent: bytes) -> None:
    os.write(pipe[1], sent)
    os.close(pipe[1])
    with pytest.raises(EOFError):
        wire.receive(pipe[0], 5)


def test_a_deadline_holds_for_the_whole_message(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], frame(b'{"arrays": []}')[:-1])
    began = time.monotonic()
    with pytest.raises(wire.WireTimeout):
        wire.receive(pipe[0], 0.2)
    assert 0.1 < time.monotonic() - began < 5


FOREIGN = [
    *(Path(backends.process.__file__).parent / f"{name}.py" for name in ("wire", "serve")),
    *Path(backends.deepsparse.__file__).parent.joinpath("worker").glob("[a-z]*.py"),
]


@pytest.mark.parametrize("path", FOREIGN, ids=lambda p: p.name)
def test_what_an_engine_imports_parses_on_python_38(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    names = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert any(n.module == "__future__" for n in names)  # `X | None` in annotations
    assert not any((n.module or "").startswith("exporter") for n in names)
