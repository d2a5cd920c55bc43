"""Rule: every tensor has the shape that config.json gives it."""

from __future__ import annotations

from exporter.arch.model_spec import ModelSpec, stored_shapes
from exporter.errors import InputRefused
from exporter.store.checkpoint import Checkpoint


def check_shapes(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Compare every tensor's stored shape with the spec's; names were checked before.

    Raises:
        InputRefused: `tensor-shape`.
    """
    for name, shape in stored_shapes(spec).items():
        entry = checkpoint.entries[name]
        if entry.shape != shape:
            raise InputRefused(
                "tensor-shape",
                f"shape {list(entry.shape)}",
                expected=f"{list(shape)} by config.json",
                file=entry.file,
                tensor=name,
            )
