"""Model folders that training makes: a checked folder's files with some weights replaced."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from exporter.model import CheckedModel
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import F32, DType
from exporter.store.jsonio import write_json
from exporter.store.masks import write_masks
from exporter.store.writer import SafetensorsWriter
from harness.prune.run import MASKS

BLOCK = 16 << 20  # bytes copied together


def write_model(
    checked: CheckedModel,
    out: Path,
    replaced: Mapping[str, F32],
    masks: Mapping[str, Mask] | None = None,
    *,
    exact: bool = True,
) -> None:
    """Write a model folder into `out`, an empty folder.

    Args:
        checked: where all other tensors, config, tokenizer come from.
        out: the folder.
        replaced: tensors by the names of `checked`, float32, in the shapes stored.
        masks: by module, each of which is a linear's; None: the masks of `checked`.
        exact: write every tensor as float32, so that nothing is rounded. Otherwise the types
            stay, and a replaced value must be one that its type holds.

    Raises:
        InputRefused: `output-failed`.
    """
    checkpoint = checked.checkpoint
    entries = list(checkpoint.entries.values())
    layout = [(e.name, DType.F32 if exact else e.dtype, e.shape) for e in entries]
    with SafetensorsWriter(out / "model.safetensors", layout, {"format": "pt"}) as writer:
        for entry, (_, dtype, shape) in zip(entries, layout, strict=True):
            given = replaced.get(entry.name)
            if not shape:
                writer.write(entry.name, checkpoint.view(entry.name).astype(dtype.numpy))
                continue
            step = max(1, BLOCK * shape[0] // max(1, 4 * int(np.prod(shape))))
            for r0 in range(0, shape[0], step):
                r1 = min(r0 + step, shape[0])
                block = checkpoint.view(entry.name, r0, r1) if given is None else given[r0:r1]
                writer.write(entry.name, np.ascontiguousarray(block.astype(dtype.numpy)))
        writer.close()
    _write_rest(checked, out, masks, exact=exact)


def _write_rest(
    checked: CheckedModel, out: Path, masks: Mapping[str, Mask] | None, *, exact: bool
) -> None:
    checkpoint = checked.checkpoint
    config = dict(checkpoint.config)
    if exact:
        config.pop("torch_dtype", None)
        config["dtype"] = "float32"
    write_json(out / "config.json", config)
    for sidecar in checkpoint.sidecars:
        (out / sidecar.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sidecar.path, out / sidecar.name)
    (out / MASKS).parent.mkdir()
    linears = checked.spec.linears()
    given = (
        ((li.module, checked.masks.mask(li)) for li in linears)
        if masks is None
        else ((li.module, masks[li.module]) for li in linears)
    )
    write_masks(out / MASKS, given)
