"""s2ft_order.json: how the public S2FT code permuted the channels of a checkpoint.

That code trains a contiguous slice, so it moves the chosen heads and FFN channels to the front
and saves the whole model in that order (experiments/utils/s2_utils.py, `convert_mha_layer_to_s2`,
`convert_ffn_layer_to_s2`). It draws the order through Python sets, so it has to be stored.
Format: docs/formats/s2ft.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from exporter.adapters.peft_files import label, read_config, validated
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.sparsity.permute import Order, as_order
from exporter.store.jsonio import write_json

S2FT_ORDER = "s2ft_order.json"
ROLES = frozenset({"q", "k", "v", "o", "gate", "up", "down"})


class LayerOrder(BaseModel):
    """One layer: place i holds channel (or head) `order[i]` of the base; None leaves all as is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ffn: list[int] | None = None
    heads: list[int] | None = None  # query heads
    kv_heads: list[int] | None = None  # what follows from `heads`, where it is written down


class OrderFile(BaseModel):
    """The whole file; as many layers as the model has."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Literal["s2ft-order"]
    version: Literal[1] = 1
    base_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    layers: list[LayerOrder]


@dataclass(frozen=True)
class Axes:
    """Orders of the axes of one layer's linears; None leaves an axis as it is."""

    ffn: Order | None  # rows of gate and up, columns of down
    query: Order | None  # rows of q, columns of o
    key: Order | None  # rows of k and v

    def of(self, role: str) -> tuple[Order | None, Order | None]:
        """Orders of the rows and of the columns of a linear; KeyError for an unknown role."""
        return {
            "q": (self.query, None),
            "k": (self.key, None),
            "v": (self.key, None),
            "o": (None, self.query),
            "gate": (self.ffn, None),
            "up": (self.ffn, None),
            "down": (None, self.ffn),
        }[role]


def read_order(folder: Path, spec: ModelSpec) -> tuple[OrderFile, list[Axes]]:
    """The order file of a permuted checkpoint, and what it does to each layer.

    Raises:
        InputRefused: `adapter-invalid`, `adapter-unsupported`, `permutation-invalid`, and those
            of JSON.
    """
    file = label(folder, S2FT_ORDER)
    orders = validated(OrderFile, read_config(folder, S2FT_ORDER), file)
    strange = {li.role for li in spec.linears()} - ROLES
    if strange:
        raise InputRefused(
            "adapter-unsupported",
            f"S2FT's code has no permutation of {', '.join(sorted(strange))} ({spec.family})",
            expected=f"linears {', '.join(sorted(ROLES))}",
            file=file,
        )
    if len(orders.layers) != spec.layers:
        raise InputRefused(
            "adapter-invalid",
            f"orders of {len(orders.layers)} layers",
            expected=f"{spec.layers}, one for each layer of the model",
            file=file,
        )
    return orders, [axes_of(layer, spec, file, i) for i, layer in enumerate(orders.layers)]


def axes_of(order: LayerOrder, spec: ModelSpec, file: str, layer: int) -> Axes:
    """Orders of channels that the orders of one layer mean.

    Raises:
        InputRefused: `permutation-invalid` for what is no order, or one that changes the output.
    """
    where = f"layers.{layer}"
    ffn = query = key = None
    if order.ffn is not None:
        ffn = as_order(order.ffn, _width(spec, layer), file=file, tensor=f"{where}.ffn")
    if order.heads is not None:
        heads = as_order(order.heads, spec.heads, file=file, tensor=f"{where}.heads")
        groups = _groups(heads, spec, file, where)
        _check_given(order.kv_heads, groups, file, where)
        query, key = spread(heads, spec.head_dim), spread(groups, spec.head_dim)
    elif order.kv_heads is not None:
        raise _illegal("kv_heads without heads", "both, or heads alone", file, where)
    return Axes(ffn, query, key)


def _width(spec: ModelSpec, layer: int) -> int:
    """FFN channels of one layer."""
    return next(li.in_features for li in spec.linears() if li.role == "down" and li.layer == layer)


def spread(heads: Order, head_dim: int) -> Order:
    """The order of channels that moves whole heads; inside a head nothing moves (rope pairs)."""
    return (heads[:, None] * head_dim + np.arange(head_dim)).reshape(-1)


def _groups(heads: Order, spec: ModelSpec, file: str, where: str) -> Order:
    """The order of key/value heads that a legal order of query heads means.

    A key/value head serves the query heads of its group, so a group moves as a whole; inside it
    query heads may change places. Any other order changes what the model computes.
    """
    size = spec.heads // spec.kv_heads
    source = heads.reshape(spec.kv_heads, size) // size
    split = np.flatnonzero(source.min(axis=1) != source.max(axis=1))
    if len(split):
        group = heads.reshape(spec.kv_heads, size)[split[0]].tolist()
        raise _illegal(
            f"query heads {group} stand in one group, and belong to different key/value heads",
            f"groups of {size} query heads moved as a whole",
            file,
            where,
        )
    return source[:, 0].astype(np.int64)


def _check_given(given: Sequence[int] | None, groups: Order, file: str, where: str) -> None:
    if given is not None and list(given) != groups.tolist():
        raise _illegal(
            f"kv_heads {list(given)}, while the query heads move by groups {groups.tolist()}",
            "key/value heads that move with their query heads",
            file,
            where,
        )


def _illegal(found: str, expected: str, file: str, where: str) -> InputRefused:
    return InputRefused(
        "permutation-invalid", found, expected=expected, file=file, tensor=f"{where}.heads"
    )


def write_order(
    folder: Path, layers: Sequence[Mapping[str, list[int]]], base_sha256: str | None = None
) -> None:
    """Put s2ft_order.json beside a permuted checkpoint.

    Args:
        folder: the checkpoint's.
        layers: for each layer `ffn`, `heads` (and `kv_heads`), each where it moved.
        base_sha256: digest of the base.

    Raises:
        InputRefused: `adapter-invalid`, `output-failed`.
    """
    raw = {"method": "s2ft-order", "base_sha256": base_sha256, "layers": [dict(x) for x in layers]}
    orders = validated(OrderFile, raw, S2FT_ORDER)
    write_json(folder / S2FT_ORDER, orders.model_dump(exclude_none=True))
