"""A checked model in memory, and a slow float64 merge to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from exporter.adapters.base import Adapter, Replacement
from exporter.adapters.lowrank import LowRankDelta, MaskedLowRankDelta
from exporter.arch.model_spec import Linear, ModelSpec
from exporter.model import CheckedModel
from exporter.sparsity.mask import Mask
from exporter.sparsity.pattern import LinearPattern, linear_pattern
from exporter.store.checkpoint import Checkpoint
from tests.adapters.forge import spec_of


@dataclass
class FakeCheckpoint:
    """Tensors in memory behind `Checkpoint.rows`."""

    tensors: Mapping[str, Any]
    reads: list[tuple[str, int]] = field(default_factory=list)

    def rows(self, name: str, r0: int = 0, r1: int | None = None) -> Any:
        block = self.tensors[name][r0:r1].astype(np.float32)
        self.reads.append((name, len(block)))
        return block


@dataclass
class ZeroMasks:
    """Masks from the zeros of the tensors."""

    tensors: Mapping[str, Any]
    origin: str = "zeros"

    def mask(self, linear: Linear) -> Mask:
        return Mask.from_bool(self.tensors[linear.weight] != 0)


def pattern_of(module: str, weight: Any) -> LinearPattern:
    """Verdict by counting."""
    kept = int(np.count_nonzero(weight))
    return linear_pattern(
        module,
        weight.shape,
        kept=kept,
        zero_rows=0,
        zero_columns=0,
        group_max={4: 4, 8: 8, 16: 16},
    )


def make_model(
    sparsity: float = 0.5, *, dense: tuple[str, ...] = (), seed: int = 0, **config: Any
) -> CheckedModel:
    """A random model of `spec_of(**config)`; linears of the roles `dense` are not pruned."""
    spec = spec_of(**config)
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in spec.tensors().items()
    }
    for linear in spec.linears():
        if linear.role not in dense:
            weight = tensors[linear.weight]
            weight[rng.random(weight.shape) < sparsity] = -0.0
    patterns = {li.module: pattern_of(li.module, tensors[li.weight]) for li in spec.linears()}
    return CheckedModel(
        checkpoint=cast(Checkpoint, FakeCheckpoint(tensors)),
        spec=spec,
        patterns=patterns,
        masks=ZeroMasks(tensors),
        head_is_tied=spec.tied,
    )


def tensors_of(checked: CheckedModel) -> dict[str, Any]:
    """The arrays behind a model of `make_model`."""
    return cast(Any, checked.checkpoint).tensors


def shape_of(spec: ModelSpec, module: str) -> tuple[int, int]:
    """`[out, in]` of a linear or the head."""
    shapes = {li.module: (li.out_features, li.in_features) for li in spec.linears()}
    return shapes.get(module, (spec.vocab, spec.hidden))


def lora(
    checked: CheckedModel, *modules: str, rank: int = 4, scale: float = 0.5, seed: int = 1
) -> Adapter:
    """A random LoRA in memory."""
    rng = np.random.default_rng(seed)
    deltas: dict[str, Any] = {}
    for module in modules:
        out, width = shape_of(checked.spec, module)
        a = rng.standard_normal((rank, width)).astype(np.float32)
        b = rng.standard_normal((out, rank)).astype(np.float32)
        deltas[module] = LowRankDelta((out, width), lambda a=a: a, lambda b=b: b, scale)
    return Adapter("lora", f"lora{seed}", deltas, tensors_used=2 * len(modules))


def losa(checked: CheckedModel, *modules: str, seed: int = 2) -> Adapter:
    """A LoSA adapter trained under the model's own masks."""
    plain = lora(checked, *modules, seed=seed)
    linears = {li.module: li for li in checked.spec.linears()}
    masks = {m: checked.masks.mask(linears[m]) for m in modules}
    deltas = {
        m: MaskedLowRankDelta(cast(LowRankDelta, d), lambda m=m: masks[m])
        for m, d in plain.deltas.items()
    }
    return replace(plain, family="losa", deltas=deltas, masks=masks, masked=True)


def whole(tensor: str, values: Any, mode: Any = "replace") -> Replacement:
    """A replacement in memory."""
    return Replacement(
        tensor, values.shape, lambda r0, r1: values[r0:r1].copy(), mode, "modules_to_save"
    )


def dense_delta(adapter: Adapter, module: str) -> Any:
    """float64 `[out, in]` of one delta, straight from the factors."""
    delta = cast(Any, adapter.deltas[module])
    plain = getattr(delta, "inner", delta)
    product = plain.scale * (plain.b().astype(np.float64) @ plain.a().astype(np.float64))
    return product * delta.mask().rows() if adapter.masked else product


def slow_merge(weight: Any, delta: Any, policy: str) -> Any:
    """What each policy means, in float64 and in one line."""
    weight, kept = weight.astype(np.float64), weight != 0
    return {
        "exact": np.where(kept, weight + delta, 0.0),
        "mask": np.where(kept, weight + delta, 0.0),
        "separate": weight,
        "densify": weight + delta,
    }[policy]
