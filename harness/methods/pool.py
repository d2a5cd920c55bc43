"""SWGI's pooling adapter on the linears of one mask: attach, and write.

No code or equations of that paper are public; docs/formats/pooling.md says what is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from exporter.adapters.pool_groups import Grouping
from exporter.adapters.pool_norm import NEEDS_TAU, Norm
from exporter.adapters.pooling import write_pooling
from exporter.arch.model_spec import Linear
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import F32
from harness.methods.base import Adaptation, Base, as_numpy, kept_of, put, require_zeros
from harness.methods.iterative_settings import IterativeSettings
from harness.methods.options import Training
from harness.methods.pool_layer import PoolLinear, TrainMask


@dataclass(frozen=True)
class PoolSettings(IterativeSettings):
    """`rank` counts parameters: G of a linear has as many as a LoRA of that rank.

    `decay` is the weight decay of G with `norm=wd`; `tau` bounds G in maxnorm and spectral.
    """

    rank: int = 8
    scale: float = 1.0
    pool: Literal["mean", "sum"] = "mean"
    grouping: Literal["balanced", "ceil", "strided"] = "balanced"
    norm: Norm = "none"
    tau: float = 1.0
    decay: float = 0.1
    train_mask: TrainMask = "exact"


class Pool(Adaptation):
    """Pooling adapters on every linear of the blocks.

    Args:
        base: a model with its masks.
        settings: grouping, normaliser, mask mode.
        parameters: of each module's G; None: what `settings.rank` says.
    """

    def __init__(
        self, base: Base, settings: PoolSettings, parameters: Mapping[str, int] | None = None
    ) -> None:
        self._base, self._settings = base, settings
        generator = base.generator()
        self.layers: dict[str, PoolLinear] = {}
        for linear in base.checked.spec.linears():
            wanted = (
                settings.rank * (linear.out_features + linear.in_features)
                if parameters is None
                else parameters[linear.module]
            )
            old = cast(nn.Linear, base.model.get_submodule(linear.module))
            new = PoolLinear(
                old, kept_of(base, linear), group_counts(linear, wanted, settings.grouping),
                pool=settings.pool, grouping=settings.grouping, scale=settings.scale,
                norm=settings.norm, tau=settings.tau, mode=settings.train_mask,
                generator=generator,
            )  # fmt: skip
            put(base.model, linear.module, new)
            self.layers[linear.module] = new
        trained = {f"{n}.g": la.g for n, la in self.layers.items()}
        trained |= {f"{n}.gamma": la.gamma for n, la in self.layers.items() if la.gamma is not None}
        super().__init__(base.model, trained)

    def groups(self, training: Training) -> list[dict[str, Any]]:
        """G is decayed by `decay` with `norm=wd`, and by the run's own share otherwise."""
        decay = self._settings.decay if self._settings.norm == "wd" else training.weight_decay
        gammas = [p for n, p in self.trained.items() if n.endswith(".gamma")]
        tables = [p for n, p in self.trained.items() if n.endswith(".g")]
        groups: list[dict[str, Any]] = [{"params": tables, "weight_decay": decay}]
        return groups + ([{"params": gammas, "weight_decay": 0.0}] if gammas else [])

    def verify(self) -> None:
        """See `Adaptation.verify`."""
        for name, layer in self.layers.items():
            require_zeros(layer.weight, layer.kept, f"{name}.weight")

    def measured(self) -> dict[str, Any]:
        """Norm of each delta, and of what the mask takes from it: what the paper bounds."""
        norms: dict[str, dict[str, float]] = {}
        for name, layer in self.layers.items():
            delta = layer.delta()
            lost = delta.masked_fill(layer.kept, 0.0)
            norms[name] = {"delta": float(delta.norm()), "outside_mask": float(lost.norm())}
        return {"norms": norms, "sizes": {n: list(la.g.shape) for n, la in self.layers.items()}}

    def merged(self) -> dict[str, F32]:
        """`M . (W + D)` in float32, by module: what the next iteration starts from."""
        with torch.no_grad():
            return {
                n: as_numpy((la.weight + la.delta()).masked_fill(~la.kept, 0.0))
                for n, la in self.layers.items()
            }

    def write(self, out: Path) -> None:
        """A pooling folder (docs/formats/pooling.md), G raw and the normaliser named."""
        settings = self._settings
        tensors: dict[str, dict[str, F32]] = {}
        for name, layer in self.layers.items():
            tensors[name] = {"pool_G": as_numpy(layer.g)}
            if layer.gamma is not None:
                tensors[name]["pool_gamma"] = as_numpy(layer.gamma)
        config: dict[str, Any] = {
            "base": self._base.name,
            "base_sha256": self._base.checked.checkpoint.identity(),
            "pool": settings.pool,
            "grouping": settings.grouping,
            "scale": settings.scale,
            "norm": settings.norm,
            "train_mask": settings.train_mask,
        }
        if settings.norm in NEEDS_TAU:
            config["tau"] = settings.tau
        masks = {n: Mask.from_bool(la.kept.cpu().numpy()) for n, la in self.layers.items()}
        write_pooling(out, config, tensors, masks if settings.train_mask != "none" else None)


def group_counts(linear: Linear, parameters: int, grouping: Grouping) -> tuple[int, int]:
    """`(gout, gin)` of a square G of at most about `parameters` values.

    A side that the linear cannot fill gives its share to the other. `ceil` groups may leave empty
    ones, so their count is lowered to what `ceil(d / ceil(d / g))` groups fill.
    """
    side = max(1, round(math.sqrt(parameters)))
    gout, gin = min(side, linear.out_features), min(side, linear.in_features)
    if gout < side:
        gin = min(linear.in_features, max(1, parameters // gout))
    elif gin < side:
        gout = min(linear.out_features, max(1, parameters // gin))
    if grouping != "ceil":
        return gout, gin
    return _filled(linear.out_features, gout), _filled(linear.in_features, gin)


def _filled(size: int, groups: int) -> int:
    return -(-size // -(-size // groups))
