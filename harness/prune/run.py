"""Prune a Hugging Face folder into a new one: the same bytes but for the zeros, and the masks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from exporter.check.model import check_model
from exporter.contract import Progress
from exporter.model import CheckedModel
from exporter.sparsity.mask import Bools, Mask
from exporter.store.checkpoint import Checkpoint, TensorEntry
from exporter.store.folder import stage
from exporter.store.masks import MasksFile, write_masks
from exporter.store.writer import SafetensorsWriter
from harness.forms import require_torch_linears
from harness.hf import load_tokenizer
from harness.prune.magnitude import magnitude_masks
from harness.prune.sparsity import Sparsity
from harness.text import BUILTIN, draw, windows

Method = Literal["magnitude", "wanda"]
# In a folder of their own: beside the weights a second safetensors file would be ambiguous.
MASKS = Path("masks", "masks.safetensors")
RECORD = Path("masks", "prune.json")
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Calibration:
    """Text that a data-aware score is measured on: `samples` windows of `length` tokens."""

    source: str = BUILTIN  # a text file, or "builtin"
    samples: int = 32
    length: int = 128
    seed: int = 0


@dataclass(frozen=True)
class Pruned:
    """What a run reached."""

    method: Method
    asked: str
    linears: int
    weights: int
    kept: int
    calibration: Calibration | None

    @property
    def sparsity(self) -> float:
        """Share of zeros over all pruned linears."""
        return 1.0 - self.kept / self.weights


def prune_folder(
    model: Path,
    out: Path,
    method: Method,
    sparsity: Sparsity,
    calibration: Calibration | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Pruned:
    """Write `out`: config, tokenizer and weights of `model`, zeros in its linears, and masks.

    Every linear of the decoder's blocks is pruned to `sparsity`; embedding, head, norms and
    biases stay. Types and names stay; shards become one file. The masks lie in
    `out/masks/masks.safetensors`, for `sparse-export --masks`.

    Raises:
        InputRefused: what `check_model` refuses; `data-invalid`, `input-missing` (text).
        UsageError: `output-exists`, `output-inside-input`.
    """
    checkpoint = Checkpoint.open(model)
    try:
        checked = check_model(checkpoint, progress=progress)
        used = calibration or Calibration() if method == "wanda" else None
        with stage(out, inputs=[model], force=force) as staging:
            (staging.path / MASKS).parent.mkdir()
            masks = _masks(checked, method, sparsity, used, progress)
            write_masks(staging.path / MASKS, masks)
            kept = _write_model(checked, staging.path, progress)
            linears = checked.spec.linears()
            weights = sum(li.out_features * li.in_features for li in linears)
            report = Pruned(method, str(sparsity), len(linears), weights, kept, used)
            _write_record(staging.path / RECORD, report)
            staging.publish()
        return report
    finally:
        checkpoint.close()


def _masks(
    checked: CheckedModel,
    method: Method,
    sparsity: Sparsity,
    calibration: Calibration | None,
    progress: Progress | None,
) -> Iterator[tuple[str, Mask]]:
    if calibration is None:
        return magnitude_masks(checked, sparsity)
    require_torch_linears(checked, "wanda on")
    # Imported here: magnitude pruning needs neither torch nor transformers.
    from harness.prune.wanda import wanda_masks

    tokenizer = load_tokenizer(checked.checkpoint.root)
    rows = windows(tokenizer, calibration.source, calibration.length)
    return wanda_masks(
        checked, sparsity, draw(rows, calibration.samples, calibration.seed), progress
    )


def _write_model(checked: CheckedModel, out: Path, progress: Progress | None) -> int:
    """Copy the folder with the zeros in; gives how many weights of the linears are kept."""
    checkpoint = checked.checkpoint
    linears = {linear.weight: linear for linear in checked.spec.linears()}
    shapes = {li.module: (li.out_features, li.in_features) for li in linears.values()}
    masks = MasksFile.open(out / MASKS, shapes)
    entries = list(checkpoint.entries.values())
    layout = [(entry.name, entry.dtype, entry.shape) for entry in entries]
    writer = SafetensorsWriter(out / "model.safetensors", layout, {"format": "pt"})
    kept = 0
    for i, entry in enumerate(entries):
        linear = linears.get(entry.name)
        mask = None if linear is None else masks.mask(linear.module)
        _write_tensor(writer, checkpoint, entry, mask)
        kept += 0 if mask is None else mask.kept
        if progress is not None:
            progress("weights", i + 1, len(entries))
    writer.close()
    shutil.copyfile(checkpoint.root / "config.json", out / "config.json")
    for sidecar in checkpoint.sidecars:
        (out / sidecar.name).parent.mkdir(exist_ok=True)
        shutil.copyfile(sidecar.path, out / sidecar.name)
    return kept


def _write_tensor(
    writer: SafetensorsWriter, checkpoint: Checkpoint, entry: TensorEntry, mask: Mask | None
) -> None:
    if not entry.shape:
        writer.write(entry.name, checkpoint.view(entry.name))
        return
    rows, transposed = entry.shape[0], entry.name in checkpoint.transposed
    step = max(1, BLOCK_BYTES * rows // max(1, entry.nbytes))
    for r0 in range(0, rows, step):
        r1 = min(r0 + step, rows)
        block = checkpoint.view(entry.name, r0, r1)
        if mask is not None:
            block = block.copy()
            block[~_kept(mask, r0, r1, transposed)] = 0
        writer.write(entry.name, block)


def _kept(mask: Mask, r0: int, r1: int, transposed: bool) -> Bools:
    """Stored rows `[r0:r1]` of a mask `[out, in]`."""
    return mask.rows(0, mask.out_features)[:, r0:r1].T if transposed else mask.rows(r0, r1)


def _write_record(path: Path, report: Pruned) -> None:
    record = {**asdict(report), "sparsity": report.sparsity}
    path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
