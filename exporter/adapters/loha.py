"""LoHa of PEFT: the Hadamard product of two low-rank products.

Format: adapter_config.json and adapter_model.safetensors of PEFT 0.21; see docs/formats/loha.md.
Delta: `alpha / r * (W1a W1b) . (W2a W2b)` (FedPara, Hyeon-Woo et al. 2022;
peft/tuners/loha/layer.py, `HadaWeight.forward`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.lycoris import HARMLESS, NOT_HERE, LycorisConfig
from exporter.adapters.options import OptionTable
from exporter.adapters.peft_files import peft_type
from exporter.adapters.tensors import largest_magnitude
from exporter.adapters.tuner import Built, Opened, Tuner, finish, open_tuner
from exporter.adapters.tuner_checks import check_fits, check_shape, require_parts
from exporter.adapters.tuner_files import write_tuner
from exporter.arch.model_spec import ModelSpec
from exporter.model import LowRank
from exporter.store.dtypes import F32

_PARTS: tuple[str, ...] = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

TUNER = Tuner(
    family="loha",
    mark="hada_",
    config=LycorisConfig,
    options=OptionTable(
        read=frozenset(LycorisConfig.model_fields) - NOT_HERE,
        harmless=HARMLESS,
    ),
)


@dataclass(frozen=True)
class HadamardDelta:
    """`left . right`, elementwise, of two low-rank products of one shape."""

    left: LowRankDelta
    right: LowRankDelta

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        return self.left.shape

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, float32; the block size does not change a bit of either factor."""
        block = self.left.rows(r0, r1)
        return np.multiply(block, self.right.rows(r0, r1), out=block)

    def low_rank(self) -> LowRank | None:
        """None: its rank may be `r * r`, which is no saving over the weight itself."""
        return None


class LohaFamily:
    """Reads a PEFT folder of type LOHA."""

    name: ClassVar[str] = TUNER.family

    def claims(self, folder: Path) -> bool:
        """Whether the config says LOHA."""
        return peft_type(folder) == "LOHA"

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly; every tensor of the file is used exactly once.

        Raises:
            InputRefused: the `adapter-*` codes and those of values and file formats.
        """
        opened = open_tuner(TUNER, folder, spec)
        built = {module: _build(opened, module) for module in opened.parts}
        return finish(opened, built, base, facts=lycoris_facts(opened))


def lycoris_facts(opened: Opened[Any]) -> dict[str, Any]:
    """Ranks and scales for the report."""
    config, file = opened.config, opened.folder.config_file
    return {
        "ranks": sorted({config.rank(m, file) for m in opened.parts}),
        "scales": sorted({config.scale(m, file) for m in opened.parts}),
    }


def _build(opened: Opened[LycorisConfig], module: str) -> Built:
    names = require_parts(opened, module, *_PARTS)
    out, width = opened.shapes[module]
    file = opened.folder.config_file
    rank, scale = opened.config.rank(module, file), opened.config.scale(module, file)
    tensors = opened.folder.tensors
    top = abs(scale) * rank * rank
    for i, name in enumerate(names):
        shape, axes = ((rank, width), "[rank, in]") if i % 2 else ((out, rank), "[out, rank]")
        check_shape(opened, name, shape, axes)
        top *= largest_magnitude(tensors, name)
    check_fits(opened, module, top)
    w1a, w1b, w2a, w2b = (tensors.float32(name) for name in names)
    left = LowRankDelta((out, width), w1b, w1a, scale)
    right = LowRankDelta((out, width), w2b, w2a, 1.0)
    return Built(HadamardDelta(left, right), moves=top > 0.0)


def write_loha(
    folder: Path,
    factors: Mapping[str, tuple[F32, F32, F32, F32]],
    *,
    alpha: float,
    base_name: str | None = None,
) -> None:
    """Write a LoHa that peft loads; each module keeps the rank of its factors.

    Args:
        folder: new or empty.
        factors: module -> W1a `[out, r]`, W1b `[r, in]`, W2a `[out, r]`, W2b `[r, in]`.
        alpha: the scale is `alpha / r`.
        base_name: what the config says of the base.

    Raises:
        InputRefused: `output-failed`.
    """
    parts = {m: dict(zip(_PARTS, own, strict=True)) for m, own in factors.items()}
    ranks = {m: own[0].shape[1] for m, own in factors.items()}
    options = {"r": max(ranks.values()), "alpha": alpha, "rank_pattern": ranks}
    write_tuner(folder, "LOHA", parts, options, base_name=base_name)
