"""Which ids a file gives, and which windows are cut of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from exporter.calibration.request import CalibrationRequest
from exporter.calibration.source import read_ids, read_text
from exporter.calibration.windows import choose
from exporter.errors import InputRefused, UsageError


def by_bytes(text: str) -> Any:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64)


def test_text_is_tokenised(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc")
    np.testing.assert_array_equal(read_ids(path, by_bytes, 256), [97, 98, 99])


@pytest.mark.parametrize("value", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[1], 2, [3, 4]]])
def test_ids_in_json(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    np.testing.assert_array_equal(read_ids(path, by_bytes, 9), [1, 2, 3, 4])


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_ids_in_safetensors(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"ids": np.array([[1, 2], [3, 4]], dtype)}, path)
    np.testing.assert_array_equal(read_ids(path, by_bytes, 9), [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.txt", b"", "data-invalid"),
        ("a.txt", b" \n ", "data-invalid"),
        ("a.txt", b"\xff\xfe", "data-invalid"),
        ("a.txt", b"\xc3\xbc", "data-invalid"),  # byte 195 is beyond the vocabulary of 100
        ("a.json", b"{}", "data-invalid"),
        ("a.json", b"[]", "data-invalid"),
        ("a.json", b"[1.5]", "data-invalid"),
        ("a.json", b"[true]", "data-invalid"),
        ("a.json", b'["a"]', "data-invalid"),
        ("a.json", b"[1, 100]", "data-invalid"),
        ("a.json", b"[-1]", "data-invalid"),
        ("a.json", b"[1", "json-invalid"),
        ("a.safetensors", b"short", None),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, code: str | None) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputRefused) as caught:
        read_ids(path, by_bytes, 100)
    assert code is None or caught.value.code == code
    assert caught.value.file == name


def test_safetensors_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(InputRefused) as caught:
        read_ids(path, by_bytes, 100)
    assert "w F32[2, 2]" in caught.value.found


def test_files_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputRefused):
            read_text(path)


def test_a_text_beyond_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("word " * 100)
    with pytest.raises(InputRefused) as caught:
        read_text(path, most=100)
    assert caught.value.code == "limit-exceeded"


# --- the request ---------------------------------------------------------------------------------


def test_options() -> None:
    found = CalibrationRequest.parse("a/b.txt:tokens=100,held-out=50,length=10", Path("c.txt"))
    want = CalibrationRequest(Path("a/b.txt"), 100, 50, 10, Path("c.txt"))
    assert found == want
    assert found.files == (Path("a/b.txt"), Path("c.txt"))
    assert CalibrationRequest.parse("a.txt") == CalibrationRequest(Path("a.txt"))


def test_a_file_with_a_colon_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a:tokens=5"
    path.write_text("x")
    assert CalibrationRequest.parse(str(path)).file == path


@pytest.mark.parametrize(
    "options", ["tokens", "tokens=", "tokens=-4", "tokens=1", "tokens=4,tokens=4", "file=a", ""]
)
def test_bad_options(options: str) -> None:
    with pytest.raises(UsageError):
        CalibrationRequest.parse(f"a.txt:{options}")


# --- windows -------------------------------------------------------------------------------------


@given(
    st.integers(20, 400),
    st.integers(2, 10),
    st.integers(2, 200),
    st.integers(2, 200),
    st.booleans(),
)
def test_windows_never_overlap(count: int, length: int, tokens: int, held: int, own: bool) -> None:
    request = CalibrationRequest(Path("a"), tokens, held, length, Path("b") if own else None)
    ids, other = np.arange(count), np.arange(1000, 1000 + count)
    found = choose(request, ids, other if own else None, positions=10)
    flat = found.ids.reshape(-1)
    assert len(set(flat.tolist())) == flat.size  # each token once: observed or held out, not both
    assert found.ids.shape[1] == length
    assert (np.diff(found.ids, axis=1) == 1).all()
    assert 1 <= found.held_out <= max(1, held // length)
    assert 1 <= found.observed <= max(1, tokens // length)
    assert (found.ids[found.observed :] >= 1000).all() == own
    if not own:
        assert found.ids[: found.observed].max() < found.ids[found.observed :].min()


def test_windows_spread_over_the_text() -> None:
    found = choose(CalibrationRequest(Path("a"), 40, 10, 10), np.arange(1000), None, 10)
    assert found.ids[:, 0].tolist() == [0, 240, 490, 740, 990]
    assert found.held_out == 1


def test_the_length_follows_the_model() -> None:
    assert choose(CalibrationRequest(Path("a")), np.arange(5000), None, 256).ids.shape[1] == 256
    assert choose(CalibrationRequest(Path("a")), np.arange(5000), None, 8192).ids.shape[1] == 512


def test_too_little_text() -> None:
    with pytest.raises(InputRefused) as caught:
        choose(CalibrationRequest(Path("a.txt"), length=10), np.arange(19), None, 10)
    assert (caught.value.code, caught.value.file) == ("data-invalid", "a.txt")
    request = CalibrationRequest(Path("a.txt"), length=10, evaluation=Path("b.txt"))
    with pytest.raises(InputRefused) as caught:
        choose(request, np.arange(19), np.arange(9), 10)
    assert caught.value.file == "b.txt"
