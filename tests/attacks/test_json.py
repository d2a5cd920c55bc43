"""Every attack on JSON text is refused with its code; what passes is what `json` reads."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.errors import InputRefused
from exporter.limits import LIMITS
from exporter.store.index import read_index
from exporter.store.jsonio import dump_json, read_json, write_json
from exporter.store.manifest import read_manifest
from tests.attacks.corpus import JSONS

FUZZ = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
FINITE = SCALARS | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    FINITE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def put(folder: Path, data: bytes, name: str = "x.json") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", JSONS)
def test_attack_is_refused(name: str, tmp_path: Path) -> None:
    data, code = JSONS[name]
    with pytest.raises(InputRefused) as caught:
        read_json(put(tmp_path, data))
    assert (caught.value.code, caught.value.file) == (code, "x.json")


def test_size_is_bounded_before_reading(tmp_path: Path) -> None:
    """A 200 MB index, as a file of holes: refused by its size, not by reading it."""
    path = put(tmp_path, b"{}")
    os.truncate(path, 200_000_000)
    with pytest.raises(InputRefused) as caught:
        read_json(path)
    assert caught.value.code == "limit-exceeded"
    with pytest.raises(InputRefused):
        read_json(put(tmp_path, b"[1, 2]"), dataclasses.replace(LIMITS, json_bytes=5))


def test_depth_at_the_limit_is_read(tmp_path: Path) -> None:
    assert read_json(put(tmp_path, b"[" * 64 + b"]" * 64))


@FUZZ
@given(VALUES)
def test_round_trip(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "x.json"
    path.unlink(missing_ok=True)
    record = write_json(path, value)
    assert read_json(path) == value == json.loads(path.read_bytes())
    assert record.nbytes == path.stat().st_size


def test_writing_is_deterministic() -> None:
    assert dump_json({"b": 1, "a": [1.5, "é"]}) == dump_json({"a": [1.5, "é"], "b": 1})
    assert dump_json({"b": {}}) == b'{\n  "b": {}\n}\n'
    with pytest.raises(ValueError):
        dump_json(float("nan"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = put(tmp_path, b"old")
    with pytest.raises(InputRefused) as caught:
        write_json(path, {})
    assert caught.value.code == "output-failed" and path.read_bytes() == b"old"


@FUZZ
@given(st.binary(max_size=200) | VALUES.map(lambda v: json.dumps(v).encode()))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    try:
        value = read_json(put(tmp_path, data))
    except InputRefused as error:
        assert error.code in ("json-invalid", "limit-exceeded", "lfs-pointer")
    else:
        assert value == json.loads(data)


INDEXES = st.fixed_dictionaries(
    {}, optional={"metadata": VALUES | st.fixed_dictionaries({"total_size": VALUES}),
                  "weight_map": VALUES | st.dictionaries(st.text(max_size=4), VALUES),
                  "more": VALUES},
)  # fmt: skip


@FUZZ
@given(INDEXES | VALUES)
def test_any_index(tmp_path: Path, value: Any) -> None:
    try:
        index = read_index(put(tmp_path, json.dumps(value).encode()))
    except InputRefused:
        return
    for shard in index.shards:
        assert Path(shard).name == shard and shard not in ("", ".", "..")


@FUZZ
@given(VALUES | st.fixed_dictionaries({"schema": st.just(1), "outputs": VALUES, "inputs": VALUES}))
def test_any_manifest(tmp_path: Path, value: Any) -> None:
    put(tmp_path, json.dumps(value).encode(), ".sparse-export/manifest.json")
    with pytest.raises(InputRefused) as caught:
        read_manifest(tmp_path)
    assert caught.value.code == "manifest-invalid"
