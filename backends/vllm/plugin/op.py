"""`torch.ops.sparse_export.linear_by_rows`: x W^T + b with W packed, decompressed tile by tile.

A custom op with a fake implementation: torch.compile takes it as it is, and what depends on the
data stays inside. The library object lives as long as the process, or the op would be gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

import torch

from backends.packed.order import TILE_ROWS, blocks_at_once
from backends.packed.spec import PackedLinear
from backends.packed.torch_unpack import to_numpy, to_torch
from backends.packed.unpack import dense, unpack

NAMESPACE, NAME = "sparse_export", "linear_by_rows"
_SCHEMA = f"{NAME}(Tensor x, Tensor[] parts, str layout, Tensor? bias) -> Tensor"


def layout_text(specs: Sequence[PackedLinear]) -> str:
    """The op's `layout`: what the shards are, in the order of their rows."""
    return json.dumps([spec.to_json() for spec in specs])


def part_names(spec: PackedLinear) -> list[str]:
    """The order in which a shard's tensors stand in the op's `parts`."""
    return sorted(spec.tensors(0))


@cache
def _layout(text: str) -> tuple[tuple[PackedLinear, ...], int]:
    specs = tuple(
        PackedLinear.from_json(f"shard {i}", raw) for i, raw in enumerate(json.loads(text))
    )
    return specs, sum(spec.shape[0] for spec in specs)


def linear_by_rows(
    x: torch.Tensor, parts: Sequence[torch.Tensor], layout: str, bias: torch.Tensor | None
) -> torch.Tensor:
    """`[..., in]` times the transpose of the packed `[out, in]`, plus bias: `[..., out]`.

    Args:
        parts: all shards' tensors, in the order of `part_names`; checked.
        layout: of `layout_text`.

    Peak memory is the result and one batch of row blocks.
    """
    specs, rows = _layout(layout)
    flat = x.reshape(-1, x.shape[-1])
    out = x.new_empty((flat.shape[0], rows))
    left, at = iter(parts), 0
    for spec in specs:
        arrays = {name: to_numpy(next(left)) for name in part_names(spec)}
        step = blocks_at_once(spec.shape[1]) * TILE_ROWS
        for r0 in range(0, spec.shape[0], step):
            r1 = min(r0 + step, spec.shape[0])
            # dense() would widen every type to float32; only scaled codes need it.
            read = dense if spec.values.quantised else unpack
            weight = to_torch(read(spec, arrays, r0, r1)).to(x.dtype)
            cut = slice(at + r0, at + r1)
            out[:, cut] = torch.nn.functional.linear(
                flat, weight, None if bias is None else bias[cut]
            )
        at += spec.shape[0]
    return out.reshape(*x.shape[:-1], rows)


def _fake(
    x: torch.Tensor, parts: Sequence[torch.Tensor], layout: str, bias: torch.Tensor | None
) -> torch.Tensor:
    del parts, bias
    return x.new_empty((*x.shape[:-1], _layout(layout)[1]))


# For the life of the process: a library that is collected takes its ops with it.
_LIBRARY: list[torch.library.Library] = []


def register() -> None:
    """Define the op; a second call does nothing, as torch refuses a second definition."""
    if _LIBRARY:
        return
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    library.define(_SCHEMA)
    library.impl(NAME, linear_by_rows, "CPU")
    torch.library.register_fake(f"{NAMESPACE}::{NAME}", _fake, lib=library)
    _LIBRARY.append(library)


def linear_op() -> Callable[..., torch.Tensor]:
    """The op, as torch calls it: `linear_by_rows` with the same arguments."""
    return cast(Callable[..., torch.Tensor], getattr(getattr(torch.ops, NAMESPACE), NAME))
