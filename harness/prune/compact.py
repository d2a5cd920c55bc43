"""Take pruned heads and channels out: a smaller model that computes what the zeroed one does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.check.model import check_model
from exporter.contract import Progress
from exporter.errors import InputRefused
from exporter.model import CheckedModel
from exporter.sparsity.mask import Bools
from exporter.store.checkpoint import Checkpoint
from exporter.store.folder import stage
from exporter.store.jsonio import write_json
from exporter.store.writer import Layout, SafetensorsWriter
from harness.prune.wanda_sp import Units, kept_positions, require_units


@dataclass(frozen=True)
class Sizes:
    """What every block keeps."""

    heads: int
    kv_heads: int
    intermediate: int


def compact_folder(
    model: Path,
    out: Path,
    *,
    masks: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Sizes:
    """Write `out`: `model` without the heads and channels that its masks drop.

    config.json gets the new counts and an explicit `head_dim`. Every block must keep as many heads
    and channels as the others, since config.json has one number for all.

    Args:
        model: as `--method wanda-sp` wrote it.
        out: the folder to appear.
        masks: masks file; else the zeros are the mask.
        force: replace an existing `out`.
        progress: told after each tensor.

    Raises:
        InputRefused: `pattern-mismatch` where zeros are not whole units, or blocks differ;
            `arch-unsupported`; what `check_model` refuses.
        UsageError: `output-exists`, `output-inside-input`.
    """
    checkpoint = Checkpoint.open(model)
    try:
        checked = check_model(checkpoint, masks=masks, progress=progress)
        require_units(checked.spec)
        units = [_units(checked, layer) for layer in range(checked.spec.layers)]
        sizes = _sizes(checked, units)
        with stage(out, inputs=[model], force=force) as staging:
            _write(checked, units, staging.path / "model.safetensors", progress)
            config = _config(checked, sizes)
            write_json(staging.path / "config.json", config)
            for sidecar in checkpoint.sidecars:
                (staging.path / sidecar.name).parent.mkdir(exist_ok=True)
                shutil.copyfile(sidecar.path, staging.path / sidecar.name)
            staging.publish()
        return sizes
    finally:
        checkpoint.close()


def _units(checked: CheckedModel, layer: int) -> Units:
    """What the masks of a block keep, if it is whole units."""
    linears = {li.role: li for li in checked.spec.linears() if li.layer == layer}
    kept = {role: checked.masks.mask(linear).rows() for role, linear in linears.items()}
    heads = _any(_any(kept["k"], 1).reshape(checked.spec.kv_heads, -1), 1)
    units = Units(heads, _any(kept["up"], 1))
    for role, linear in linears.items():
        if not np.array_equal(kept[role], kept_positions(checked.spec, linear, units)):
            raise InputRefused(
                "pattern-mismatch",
                "zeros that are no whole heads and channels of the block",
                expected="masks as --method wanda-sp writes them",
                tensor=linear.weight,
            )
    return units


def _sizes(checked: CheckedModel, units: list[Units]) -> Sizes:
    found = {(int(u.heads.sum()), int(u.channels.sum())) for u in units}
    if len(found) != 1 or 0 in min(found):
        raise InputRefused(
            "pattern-mismatch",
            f"blocks that keep {sorted(found)} key-value heads and channels",
            expected="the same counts in every block, none of them 0: config.json has one number",
            hint="Prune with --rates uniform, or leave the zeros in.",
        )
    ((groups, channels),) = found
    return Sizes(groups * (checked.spec.heads // checked.spec.kv_heads), groups, channels)


def _config(checked: CheckedModel, sizes: Sizes) -> Mapping[str, Any]:
    return {
        **checked.checkpoint.config,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": checked.spec.head_dim,
        "intermediate_size": sizes.intermediate,
    }


def _write(
    checked: CheckedModel, units: list[Units], path: Path, progress: Progress | None
) -> None:
    """Copy every tensor but for the rows and columns that go."""
    picks = dict(_picks(checked, units))
    entries = list(checked.checkpoint.entries.values())
    layout: Layout = [
        (
            e.name,
            e.dtype,
            tuple(int(p.sum()) for p in picks[e.name]) if e.name in picks else e.shape,
        )
        for e in entries
    ]
    with SafetensorsWriter(path, layout, {"format": "pt"}) as writer:
        for done, entry in enumerate(entries, start=1):
            values: NDArray[Any] = checked.checkpoint.view(entry.name)
            for axis, pick in enumerate(picks.get(entry.name, ())):
                values = np.compress(pick, values, axis=axis)
            writer.write(entry.name, np.ascontiguousarray(values))
            if progress is not None:
                progress("write", done, len(entries))
        writer.close()


def _picks(checked: CheckedModel, units: list[Units]) -> Iterator[tuple[str, tuple[Bools, ...]]]:
    """`(tensor, kept positions of each axis)` of the linears and their biases."""
    for linear in checked.spec.linears():
        kept = kept_positions(checked.spec, linear, units[linear.layer])
        rows, columns = _any(kept, 1), _any(kept, 0)
        yield linear.weight, (rows, columns)
        if linear.bias:
            yield f"{linear.module}.bias", (rows,)


def _any(kept: Bools, axis: int) -> Bools:
    return np.any(kept, axis=axis, keepdims=False).reshape(-1)
