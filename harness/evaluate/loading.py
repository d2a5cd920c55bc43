"""A Hugging Face folder, with adapters or without, as a float32 torch model to be scored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from backends.reference.build import build_model
from exporter.adapters.base import BaseIdentity
from exporter.adapters.load import load_adapter
from exporter.check.model import check_model
from exporter.contract import Progress
from exporter.merge.fuse import fuse
from exporter.store.checkpoint import Checkpoint
from harness.hf import load_float32


def load(
    folder: Path,
    adapters: Sequence[Path] = (),
    masks: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Any, int]:
    """The model and the longest sequence it reads.

    Adapters are read as `sparse-export` reads them, and computed as `W + D` with nothing dropped
    (policy `densify`): a delta that was trained under the mask stays under it.

    Raises:
        InputRefused: see `check_model`, `load_adapter` and `fuse`.
    """
    checkpoint = Checkpoint.open(folder)
    try:
        checked = check_model(checkpoint, masks=masks, progress=progress)
        longest = checked.spec.max_positions
        if not adapters:
            return load_float32(folder).eval(), longest
        base = _identity(folder, checked.checkpoint)
        read = [(load_adapter(path, checked.spec, base), 1.0) for path in adapters]
        return build_model(fuse(checked, read, "densify")), longest
    finally:
        checkpoint.close()


def _identity(folder: Path, checkpoint: Checkpoint) -> BaseIdentity:
    """The base as adapters name it: by its config, else by its folder."""
    recorded = checkpoint.config.get("_name_or_path")
    name = recorded if isinstance(recorded, str) and recorded else folder.resolve().name
    return BaseIdentity(name, checkpoint.identity, lambda t: partial(checkpoint.rows, t))
