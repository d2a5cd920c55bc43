"""A FusedModel made straight from arrays: lowering is tested without check and merge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporter.arch.spec import load_spec
from exporter.model import CheckedModel, FusedModel, FusedTensor, LowRank
from exporter.store.checkpoint import Checkpoint, Sidecar


def fused_from(
    model: Any,
    *,
    branches: Mapping[str, LowRank] | None = None,
    root: Path | None = None,
    drop: str | None = None,
) -> FusedModel:
    """The fused form of a transformers model; `root` gives sidecars, `drop` leaves a tensor out."""
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    spec = load_spec(config)
    values = {name: p.detach().numpy() for name, p in model.named_parameters()}
    linears = {linear.weight: linear for linear in spec.linears()}
    tensors = {
        name: FusedTensor(name, shape, _reader(values[name]), linears.get(name))
        for name, shape in spec.tensors().items()
        if name != drop
    }
    names = ("tokenizer.json", "tokenizer_config.json") if root else ()
    sidecars = tuple(Sidecar(name, root / name) for name in names) if root else ()
    checkpoint = Checkpoint(root or Path(), {}, config, sidecars)
    masks: Any = None
    checked = CheckedModel(checkpoint, spec, {}, masks, spec.tied)
    return FusedModel(checked, tensors, branches or {}, spec.tied, {})


def _reader(values: Any) -> Any:
    return lambda r0, r1: np.array(values[r0:r1], np.float32)
