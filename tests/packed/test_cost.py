"""Time and memory of what runs at every load, within bounds that only a mistake breaks."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from backends.packed.check import check
from backends.packed.pack import index, mask_chunks, value_chunks
from backends.packed.spec import PackedLinear
from backends.packed.torch_unpack import dense_torch, to_torch
from exporter.sparsity.mask import Mask
from tests.packed.make import Source, codes, source

SHAPE = (5632, 2048)  # a gate or down projection of a model of 1.1 billion weights


def large(kind: str, values: str, group: int = 0) -> Source:
    rng = np.random.default_rng(0)
    if kind == "nm":
        kept = np.tile([False, True, True, False], (SHAPE[0], SHAPE[1] // 4))
    else:
        kept = rng.random(SHAPE, np.float32) < 0.3
    made = source("dense", values, (16, 64), group=group)
    row = codes(rng, made.spec.values, (16, SHAPE[1]))
    n, m = (2, 4) if kind == "nm" else (0, 0)
    spec = PackedLinear(kind, made.spec.values, SHAPE, int(kept.sum()), n, m, group)  # type: ignore[arg-type]
    scales = None
    if spec.values.quantised:
        scales = np.ones((SHAPE[0], spec.scale_groups), np.float32)
    return Source(spec, np.tile(row, (SHAPE[0] // 16, 1)), kept, scales)


def seconds(run: Callable[[], object]) -> float:
    """Least processor time of two runs: other programs count little."""
    taken: list[float] = []
    for _ in range(2):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return min(taken)


def peak(run: Callable[[], object]) -> int:
    """Most bytes that numpy and Python held at once above what they held before."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "values", "group"), [("ragged", "int4", 128), ("nm", "fp32", 0), ("nm", "int4", 128)]
)
def test_the_check_is_quick_and_small(kind, values, group) -> None:
    made = large(kind, values, group)
    parts = made.pack()
    assert seconds(lambda: check(made.spec, parts, "P", None)) < 0.3
    assert peak(lambda: check(made.spec, parts, "P", None)) < 4 << 20


@pytest.mark.parametrize(
    ("kind", "values"), [("ragged", "bf16"), ("nm", "bf16"), ("ragged", "int8")]
)
def test_decompressing_at_load_is_quick_and_small(kind, values) -> None:
    """In less time than numpy's assignment by a bool array, which leaves the order as it is.

    Both are timed in turn, since on a busy machine seconds alone say little. On a quiet one core
    this is some 1000 MB of bfloat16 a second.
    """
    made = large(kind, values)
    arrays = made.pack()
    parts = {part: to_torch(array) for part, array in arrays.items()}
    bits = np.unpackbits(arrays["mask"].reshape(-1), bitorder="little").view(np.bool_)
    raw = arrays["values"].reshape(-1).view(f"u{arrays['values'].itemsize}")

    def ours() -> object:
        return dense_torch(made.spec, parts, torch.bfloat16)

    def obvious() -> None:
        flat = np.zeros(bits.size, raw.dtype)
        flat[bits] = raw

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        turns = [(seconds(ours), seconds(obvious)) for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    assert min(own for own, _ in turns) < min(other for _, other in turns)
    assert peak(ours) < 16 << 20  # numpy's batches; the result itself is torch's


def test_packing_holds_a_few_row_blocks() -> None:
    made = large("ragged", "bf16")
    mask = Mask.from_bool(made.kept)

    def run() -> None:
        found = index(made.spec, mask)
        assert found.nnz == made.spec.nnz
        rows = sum(len(c) for c in value_chunks(made.spec, lambda a, b: made.codes[a:b], mask.rows))
        assert rows == int(found.starts[-1])
        assert sum(len(c) for c in mask_chunks(made.spec, mask.rows)) == made.spec.row_blocks

    assert peak(run) < 12 << 20
    nm = large("nm", "bf16")
    assert (
        peak(lambda: sum(1 for _ in mask_chunks(nm.spec, Mask.from_bool(nm.kept).rows))) < 12 << 20
    )
