"""Cuts for tensor parallelism: slices are valid, add up to the whole, and touch only their own."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.packed.check import check, check_index
from backends.packed.cut import cut
from backends.packed.pack import index, mask_chunks
from backends.packed.spec import PackedLinear, ValueType
from backends.packed.unpack import dense, kept
from exporter.errors import InputRefused
from exporter.sparsity.mask import Mask
from tests.packed.make import source, sources


def edges(data: st.DataObject, extent: int, step: int) -> list[int]:
    """Ascending places from 0 to `extent` at multiples of `step`."""
    places = data.draw(st.sets(st.integers(1, max(1, (extent - 1) // step)), max_size=3))
    return sorted({0, extent, *(p * step for p in places if p * step < extent)})


@settings(max_examples=60)
@given(sources((70, 300)), st.data())
def test_slices_at_tile_edges_add_up_to_the_whole(made, data) -> None:
    parts = made.pack()
    whole, positions = dense(made.spec, parts), kept(made.spec, parts)
    rows, columns = edges(data, made.spec.shape[0], 16), edges(data, made.spec.shape[1], 64)
    rebuilt, places = np.full_like(whole, np.nan), np.zeros_like(positions)
    nnz = 0
    for r0, r1 in zip(rows, rows[1:], strict=False):
        for c0, c1 in zip(columns, columns[1:], strict=False):
            small, found = cut(made.spec, parts, r0, r1, c0, c1)
            check(small, found, "P", None)
            assert (small.kind, small.values) == (made.spec.kind, made.spec.values)
            rebuilt[r0:r1, c0:c1] = dense(small, found)
            places[r0:r1, c0:c1] = kept(small, found)
            nnz += small.nnz
    assert rebuilt.tobytes() == whole.tobytes()
    assert np.array_equal(places, positions)
    # Kept weights of an N:M linear that are +0 are not told from fillers in a slice.
    assert nnz == made.spec.nnz or (made.spec.kind == "nm" and nnz == positions.sum())


@settings(max_examples=60)
@given(sources((50, 200)), st.data())
def test_slices_elsewhere_are_valid_and_right(made, data) -> None:
    parts = made.pack()
    r0, c0 = (data.draw(st.integers(0, extent - 1)) for extent in made.spec.shape)
    r1 = data.draw(st.integers(r0 + 1, made.spec.shape[0]))
    c1 = data.draw(st.integers(c0 + 1, made.spec.shape[1]))
    group = made.spec.group
    try:
        small, found = cut(made.spec, parts, r0, r1, c0, c1)
    except InputRefused as error:
        assert error.code == "packed-cut"
        assert group and c0 % 64 and c0 // group != (c1 - 1) // group
        return
    check(small, found, "P", None)
    assert small.shape == (r1 - r0, c1 - c0)
    want = np.ascontiguousarray(dense(made.spec, parts)[r0:r1, c0:c1])
    assert dense(small, found).tobytes() == want.tobytes()


@settings(max_examples=150)
@given(sources((33, 130)), st.data())
def test_a_slice_of_a_spoilt_linear_is_refused_or_finite(made, data) -> None:
    """`check_index`, `cut`, `check`: a rank's way in, with any one bit wrong."""
    parts = made.pack()
    part = data.draw(st.sampled_from([p for p, a in parts.items() if a.size]))
    raw = parts[part].reshape(-1).view(np.uint8)
    raw[data.draw(st.integers(0, raw.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    step = data.draw(st.sampled_from([(16, 64), (1, 1)]))
    ends = [
        data.draw(st.sampled_from(edges(data, made.spec.shape[i], step[i])[1:])) for i in (0, 1)
    ]
    try:
        check_index(made.spec, parts, "P", None)
        small, found = cut(made.spec, parts, 0, ends[0], 0, ends[1])
        check(small, found, "P", None)
    except InputRefused as error:
        assert error.code == "packed-invalid"
        return
    assert part in ("values", "scales")
    assert np.isfinite(dense(small, found)).all()


@pytest.mark.parametrize("kind", ["ragged", "nm"])
def test_the_index_is_checked_before_a_cut(kind) -> None:
    n, m = (2, 4) if kind == "nm" else (0, 0)
    made = source(kind, "bf16", (32, 128), n=n, m=m)
    parts = made.pack()
    parts["values"].reshape(-1)[:] = np.nan
    check_index(made.spec, parts, "P", None)  # values are the slice's own affair
    parts["mask"][1, 1, 3] ^= 4
    with pytest.raises(InputRefused, match=r"P\.mask"):
        check_index(made.spec, parts, "P", None)
    with pytest.raises(InputRefused, match=r"P\.values"):
        check_index(made.spec, {**parts, "values": parts["values"][:-1]}, "P", None)


def test_nm_stays_nm_where_groups_stay_whole_and_becomes_ragged_elsewhere() -> None:
    made = source("nm", "bf16", (16, 64), n=2, m=4)
    parts = made.pack()
    small, _ = cut(made.spec, parts, 0, 16, 4, 31)
    assert (small.kind, small.n, small.m) == ("nm", 2, 4)
    small, _ = cut(made.spec, parts, 0, 16, 3, 31)
    assert (small.kind, small.n, small.m) == ("ragged", 0, 0)


def test_the_whole_cut_out_is_the_same_bytes() -> None:
    for kind, values, n, m in (
        ("ragged", "int4", 0, 0),
        ("nm", "bf16", 2, 4),
        ("dense", "fp8", 0, 0),
    ):
        made = source(kind, values, (37, 150), n=n, m=m)
        parts = made.pack()
        small, found = cut(made.spec, parts, 0, 37, 0, 150)
        assert small == made.spec
        assert {p: a.tobytes() for p, a in found.items()} == {
            p: a.tobytes() for p, a in parts.items()
        }


def test_scales_of_a_column_cut() -> None:
    made = source("nm", "int4", (16, 384), n=2, m=4, group=128)
    parts = made.pack()
    for c0, c1, group, columns in (
        (128, 384, 128, [1, 2]),
        (0, 192, 128, [0, 1]),
        (64, 256, 64, [0, 1, 1]),
        (32, 96, 0, [0]),
        (192, 256, 0, [1]),
    ):
        small, found = cut(made.spec, parts, 0, 16, c0, c1)
        assert small.group == group
        assert (
            found["scales"].tobytes() == np.ascontiguousarray(parts["scales"][:, columns]).tobytes()
        )
    with pytest.raises(InputRefused, match="packed-cut"):
        cut(made.spec, parts, 0, 16, 96, 160)


def test_a_slice_is_fresh_memory() -> None:
    for kind, n, m in (("ragged", 0, 0), ("nm", 2, 4), ("dense", 0, 0)):
        made = source(kind, "int8", (32, 128), n=n, m=m, group=64)
        parts = made.pack()
        for r0 in (0, 16, 3):
            _, found = cut(made.spec, parts, r0, 32, 64, 128)
            for array in found.values():
                assert not any(np.shares_memory(array, whole) for whole in parts.values())


@pytest.mark.parametrize(
    "at", [(0, 0, 0, 4), (3, 2, 0, 4), (0, 4, 2, 9), (-1, 4, 0, 4), (0, 17, 0, 8)]
)
def test_no_slice(at) -> None:
    made = source("dense", "bf16", (16, 8))
    with pytest.raises(ValueError, match="no slice"):
        cut(made.spec, made.pack(), *at)


@pytest.mark.parametrize("kind", ["ragged", "nm", "dense"])
def test_a_cut_through_a_mapped_file_touches_only_its_slice(kind, tmp_path: Path) -> None:
    """Pages in memory after the cut, as the system counts them for the mapped file."""
    n, m = (2, 4) if kind == "nm" else (0, 0)
    marked = np.tile([True, False, False, True], (16384, 256))
    nnz = marked.size if kind == "dense" else marked.size // 2
    spec = PackedLinear(kind, ValueType.FP32, marked.shape, nnz, n, m)  # type: ignore[arg-type]
    found = index(spec, Mask.from_bool(marked))
    parts = {"offsets": found.offsets, "starts": found.starts}
    if kind != "dense":
        parts["mask"] = np.concatenate(list(mask_chunks(spec, lambda r0, r1: marked[r0:r1])))
    path, shape = tmp_path / "values.bin", spec.tensors()["values"][1]
    with path.open("wb") as file:
        file.truncate(4 * prod(shape))
    parts["values"] = np.memmap(path, np.float32, "r", shape=shape)
    assert _resident(path) == 0
    _, small = cut(spec, parts, 4096, 6144, 0, 1024)
    own = small["values"].nbytes
    assert own == 4 * prod(shape) // 8 >= 4 << 20
    # The system maps whole folios, which may be huge pages of 2 MiB at either end.
    assert own <= _resident(path) <= own + (4 << 20)


def _resident(path: Path) -> int:
    """Bytes of a mapped file that lie in this process's memory (/proc/PID/smaps, Linux)."""
    text, found = Path("/proc/self/smaps").read_text(), 0
    for entry in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text):
        if str(path) in entry:
            found += 1024 * int(re.search(r"(?m)^Rss:\s+(\d+) kB", entry)[1])  # type: ignore[index]
    return found
