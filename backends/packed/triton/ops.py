"""The operator `sparse_export::packed_linear`: one opaque node in a graph, dispatch by M inside.

M is symbolic while a graph is traced, so the choice must not be made in Python code that is
traced. All tensors are arguments, so one compiled graph serves every layer of the same form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import linear

from backends.packed.triton import half
from backends.packed.triton.plan import Path, read_step
from backends.packed.triton.weight import Layout, SparseWeight

NAMESPACE, NAME = "sparse_export", "packed_linear"
_SCHEMA = (
    "(Tensor x, Tensor? bias, Tensor mask, Tensor values, Tensor offsets, Tensor starts, "
    "Tensor scales, Tensor dense, Tensor half, Tensor plan, int[] layout) -> Tensor"
)
# Kept for the life of the process: a library that is collected takes its operators with it.
_LIBRARY: list[torch.library.Library] = []


def register() -> None:
    """Define the operator; a second call does nothing, as torch refuses a second definition."""
    if _LIBRARY:
        return
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    library.define(NAME + _SCHEMA)
    for key in ("CPU", "CUDA"):
        library.impl(NAME, _packed_linear, key)
    torch.library.register_fake(f"{NAMESPACE}::{NAME}", _shape, lib=library)
    _LIBRARY.append(library)


def _shape(
    x: torch.Tensor, bias: torch.Tensor | None, *rest: torch.Tensor | Sequence[int]
) -> torch.Tensor:
    layout = rest[-1]
    return x.new_empty((*x.shape[:-1], int(layout[2])))


def _packed_linear(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor,
    values: torch.Tensor,
    offsets: torch.Tensor,
    starts: torch.Tensor,
    scales: torch.Tensor,
    dense: torch.Tensor,
    compressed: torch.Tensor,
    plan: torch.Tensor,
    layout: Sequence[int],
) -> torch.Tensor:
    form = Layout(*layout)
    weight = SparseWeight(form, mask, values, offsets, starts, scales)
    flat = x.reshape(-1, x.shape[-1])
    path, args = read_step(plan, flat.shape[0])
    y = run(path, args, flat, bias, weight, dense, compressed)
    return y.reshape(*x.shape[:-1], form.out_features)


def run(
    path: Path,
    args: Sequence[int],
    x: torch.Tensor,
    bias: torch.Tensor | None,
    weight: SparseWeight,
    dense: torch.Tensor,
    compressed: torch.Tensor,
) -> torch.Tensor:
    """x [M, in] one given way: what the operator does once it has chosen, and what is timed."""
    if not x.shape[0]:
        return x.new_empty(0, weight.layout.out_features)
    if path is Path.DENSE:
        return linear(x, dense, bias)
    if path is Path.HALF:
        return half.multiply(compressed, x, bias, args[0])
    # Imported here: a machine without Triton can still go the ways above.
    from backends.packed.triton import launch

    rows = x if x.stride(-1) == 1 else x.contiguous()
    if path is Path.SLABS:
        return _slabs(rows, bias, weight, args[0])
    return launch.multiply(weight, rows, bias, launch.Config(*args[:4]))


def _slabs(
    x: torch.Tensor, bias: torch.Tensor | None, weight: SparseWeight, rows: int
) -> torch.Tensor:
    """Decompress `rows` rows of W, multiply, go on: scratch of one slab instead of all of W."""
    from backends.packed.triton import launch

    out = weight.layout.out_features
    y = x.new_empty(x.shape[0], out)
    for r0 in range(0, out, rows):
        r1 = min(out, r0 + rows)
        part = None if bias is None else bias[r0:r1]
        y[:, r0:r1] = linear(x, launch.expand(weight, x.dtype, r0, r1), part)
    return y
