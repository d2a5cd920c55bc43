"""SoRA: a LoRA with a gate on each rank; a gate that training drove to zero drops its rank.

`W' = W + (alpha / r) B diag(g) A` (Ding et al. 2023; public code src/lora.py,
`LowRankLinear.forward`). r is the rank that training began with, whatever the gates left of it.
Format: docs/formats/sora.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.held import LastMade
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.options import COMMON_HARMLESS, OptionTable
from exporter.adapters.peft_config import PeftConfig
from exporter.adapters.peft_files import peft_type
from exporter.adapters.ranks import check_rank
from exporter.adapters.tensors import largest_magnitude
from exporter.adapters.tuner import Built, Opened, Tuner, finish, open_tuner
from exporter.adapters.tuner_checks import check_fits, check_shape, require_parts
from exporter.adapters.tuner_files import write_tuner
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.store.dtypes import F32

_A, _B, _GATE = "lora_A.weight", "lora_B.weight", "lora_gate"


class SoraConfig(PeftConfig):
    """The fields that decide what a SoRA adds; defaults are the public code's."""

    r: int = 8
    lora_alpha: int | float = 16


TUNER = Tuner(
    family="sora",
    mark="lora_",
    config=SoraConfig,
    options=OptionTable(
        read=frozenset(SoraConfig.model_fields) - {"ensure_weight_tying"},
        harmless=COMMON_HARMLESS | {"lora_dropout", "sparse_lambda", "sparse_lambda_2"},
    ),
)


class SoraFamily:
    """Reads a folder of our layout, type SORA."""

    name: ClassVar[str] = TUNER.family

    def claims(self, folder: Path) -> bool:
        """Whether the config says SORA."""
        return peft_type(folder) == "SORA"

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly; every tensor of the file is used exactly once.

        Raises:
            InputRefused: the `adapter-*` codes, `value-not-finite`, `value-overflow`.
        """
        opened = open_tuner(TUNER, folder, spec)
        check_rank(opened.config.r, opened.folder.config_file)
        held: LastMade[tuple[F32, F32]] = LastMade()
        kept: dict[str, int] = {}
        built: dict[str, Built] = {}
        for module in opened.parts:
            built[module], kept[module] = _build(opened, module, held)
        facts = {
            "ranks": sorted(set(kept.values())),
            "scale": _scale(opened.config),
            "rank_before": opened.config.r,
        }
        return finish(opened, built, base, facts=facts)


def _scale(config: SoraConfig) -> float:
    return config.lora_alpha / config.r


def _build(
    opened: Opened[SoraConfig], module: str, held: LastMade[tuple[F32, F32]]
) -> tuple[Built, int]:
    """The module's delta, and how many of its ranks have a gate other than zero."""
    names = require_parts(opened, module, _A, _B, _GATE)
    out, width = opened.shapes[module]
    rank = opened.shape_of(module, _A)[0] if opened.shape_of(module, _A) else 0
    if rank > opened.config.r:
        raise InputRefused(
            "adapter-shape",
            f"A has {rank} rows",
            expected=f"at most {opened.config.r}, the rank that the scale is taken of",
            file=opened.file,
            tensor=names[0],
        )
    check_shape(opened, names[0], (rank, width), "[rank, in]")
    check_shape(opened, names[1], (out, rank), "[out, rank]")
    # The public code keeps the gate as [1, r].
    flat = len(opened.shape_of(module, _GATE)) == 1
    check_shape(opened, names[2], (rank,) if flat else (1, rank), "[rank] or [1, rank]")
    scale = _scale(opened.config)
    top = abs(scale) * max(rank, 1)
    for name in names:
        top *= largest_magnitude(opened.folder.tensors, name)
    check_fits(opened, module, top)
    tensors = opened.folder.tensors
    a, b, gate = (tensors.float32(name) for name in names)
    kept = int(np.count_nonzero(gate()))
    if not kept:
        return Built(None, moves=False), 0

    def factors() -> tuple[F32, F32]:
        return held.get(module, lambda: _folded(a(), b(), gate()))

    delta = LowRankDelta((out, width), lambda: factors()[0], lambda: factors()[1], scale)
    return Built(delta, moves=top > 0.0), kept


def _folded(a: F32, b: F32, gate: F32) -> tuple[F32, F32]:
    """A and `B diag(g)` of the ranks whose gate is not zero."""
    gate = gate.reshape(-1)
    (kept,) = np.nonzero(gate)
    return np.ascontiguousarray(a[kept]), np.ascontiguousarray(b[:, kept] * gate[kept])


def write_sora(
    folder: Path,
    factors: Mapping[str, tuple[F32, F32, F32]],
    *,
    alpha: float,
    r: int,
    base_name: str | None = None,
) -> None:
    """Write a SoRA; equal inputs give equal bytes.

    Args:
        folder: new or empty.
        factors: module -> (A `[r_l, in]`, B `[out, r_l]`, gate `[r_l]`), float32, `r_l <= r`:
            ranks of gate zero may be left out.
        alpha: numerator of the scale.
        r: its denominator, the rank that training began with.
        base_name: what the config says of the base.

    Raises:
        InputRefused: `output-failed`.
    """
    parts = {m: {_A: a, _B: b, _GATE: gate} for m, (a, b, gate) in factors.items()}
    write_tuner(folder, "SORA", parts, {"r": r, "lora_alpha": alpha}, base_name=base_name)
