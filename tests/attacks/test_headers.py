"""Every attack on the header is refused with its code; what is odd but sound is read."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from exporter.errors import InputRefused
from exporter.limits import LIMITS
from exporter.store.header import read_header
from tests.attacks.corpus import GOOD, HEADERS, file_of, raw_file, tensor

FUZZ = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def put(folder: Path, data: bytes) -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", HEADERS)
def test_attack_is_refused(name: str, tmp_path: Path) -> None:
    data, code = HEADERS[name]
    with pytest.raises(InputRefused) as caught:
        read_header(put(tmp_path, data))
    assert caught.value.code == code
    assert caught.value.file == "x.safetensors"
    str(caught.value).encode()  # printable whatever the file holds


@pytest.mark.parametrize("cut", range(len(GOOD)))
def test_every_truncation_is_refused(cut: int, tmp_path: Path) -> None:
    with pytest.raises(InputRefused) as caught:
        read_header(put(tmp_path, GOOD[:cut]))
    assert caught.value.code == "file-truncated"


def test_sound_file(tmp_path: Path) -> None:
    header = read_header(put(tmp_path, GOOD))
    assert [(e.name, e.shape, e.nbytes) for e in header.entries.values()] == [
        ("a", (2,), 8),
        ("b", (2, 2), 16),
    ]
    assert header.nbytes == len(GOOD) == header.entries["b"].end
    assert header.entries["a"].end == header.entries["b"].start


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt", "x": ""}])
def test_metadata_may_be_null(metadata: object, tmp_path: Path) -> None:
    data = file_of({"__metadata__": metadata, "a": tensor([2], 0, 8)}, 8)
    assert read_header(put(tmp_path, data)).metadata == (metadata or {})


def test_odd_but_sound(tmp_path: Path) -> None:
    """No tensors, empty tensors between others, scalars, padding, data at an odd address."""
    assert not read_header(put(tmp_path, raw_file(b"{}"))).entries
    tensors = {
        "last": tensor([], 4, 8),
        "empty": tensor([3, 0, 5], 4, 4),
        "first": tensor([1], 0, 4),
        "empty too": tensor([0], 0, 0),
    }
    header = json.dumps(tensors).encode() + b" "
    header += b" " * (1 - len(header) % 2)
    found = read_header(put(tmp_path, raw_file(header, bytes(8)))).entries
    assert list(found) == ["empty too", "first", "empty", "last"]
    assert found["last"].shape == () and found["first"].start % 2 == 1


@pytest.mark.parametrize(
    ("field", "value"), [("header_bytes", 10), ("tensors", 1), ("rank", 1), ("name_chars", 0)]
)
def test_each_limit_holds(field: str, value: int, tmp_path: Path) -> None:
    limits = dataclasses.replace(LIMITS, **{field: value})
    with pytest.raises(InputRefused) as caught:
        read_header(put(tmp_path, GOOD), limits)
    assert caught.value.code == "limit-exceeded"


@FUZZ
@given(st.binary(max_size=400))
def test_any_bytes_as_a_file(tmp_path: Path, data: bytes) -> None:
    read_or_refuse(tmp_path, data)


@FUZZ
@given(st.binary(max_size=300), st.binary(max_size=40))
def test_any_bytes_as_a_header(tmp_path: Path, header: bytes, data: bytes) -> None:
    read_or_refuse(tmp_path, raw_file(b"{" + header, data))


NUMBER = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**30]),
    st.floats(),
    st.none(),
)
FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "BOOL", "F64", "nope"]),
        "shape": st.lists(NUMBER, max_size=4),
        "data_offsets": st.lists(NUMBER, max_size=3),
    },
    optional={"more": NUMBER},
)


@FUZZ
@given(st.dictionaries(st.text(max_size=3), FIELDS, max_size=4), st.integers(0, 60))
def test_any_fields(tmp_path: Path, tensors: dict[str, object], nbytes: int) -> None:
    read_or_refuse(tmp_path, file_of(tensors, nbytes))


@FUZZ
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_any_changed_byte(tmp_path: Path, place: int, value: int) -> None:
    data = bytearray(GOOD)
    data[place] = value
    read_or_refuse(tmp_path, bytes(data))


def read_or_refuse(folder: Path, data: bytes) -> None:
    """Typed error, or a header that covers the file; what we take, the library takes too."""
    try:
        header = read_header(put(folder, data))
    except InputRefused:
        return
    start = 8 + struct.unpack("<Q", data[:8])[0]
    assert sum(e.nbytes for e in header.entries.values()) == len(data) - start
    try:
        theirs = load(data)
    except SafetensorError as error:
        # "__metadata__": null is the one thing we take and the library may not.
        assert b"__metadata__" in data, error
        return
    assert theirs.keys() == header.entries.keys()
    for name, entry in header.entries.items():
        assert theirs[name].tobytes() == data[entry.start : entry.end]
        assert theirs[name].shape == entry.shape


@FUZZ
@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=6),
        st.tuples(
            st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=6,
    )
)
def test_reads_what_the_library_wrote(
    tmp_path: Path, spec: dict[str, tuple[type, list[int]]]
) -> None:
    arrays = {n: np.ones(shape, dtype) for n, (dtype, shape) in spec.items()}
    data = save(arrays, {"k": "v"})
    header = read_header(put(tmp_path, data))
    assert header.metadata == {"k": "v"}
    assert {n: e.shape for n, e in header.entries.items()} == {
        n: a.shape for n, a in arrays.items()
    }
    for name, entry in header.entries.items():
        assert data[entry.start : entry.end] == arrays[name].tobytes()
