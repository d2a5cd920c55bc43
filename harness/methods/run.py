"""Train an adapter on a model folder and publish it, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from exporter.check.model import check_model
from exporter.contract import Progress
from exporter.store.checkpoint import Checkpoint
from exporter.store.folder import stage
from harness.forms import require_torch_linears
from harness.hf import load_tokenizer
from harness.methods.options import Factors, Report, Training
from harness.text import BUILTIN, windows

Method = Literal["losa", "lora"]


def train_folder(
    model: Path,
    out: Path,
    method: Method,
    options: Training,
    factors: Factors,
    *,
    report: Report,
    data: str = BUILTIN,
    masks: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[float]:
    """Train `method` on `model` and write the adapter to `out`; gives the loss of each step.

    Args:
        model: Hugging Face folder; it is not changed.
        out: the adapter's folder.
        method: "losa" (under the mask) or "lora" (plain).
        options: of the loop.
        factors: rank and alpha, the same for all linears.
        report: told of each step's loss.
        data: a text file, or "builtin".
        masks: masks file; else the zeros of the model are the mask.
        force: replace an existing `out`.
        progress: told while the model is checked.

    Raises:
        InputRefused: what `check_model` refuses; `data-invalid`, `input-missing`.
        UsageError: `output-exists`, `output-inside-input`.
        VerificationFailed: `training-failed`.
    """
    checkpoint = Checkpoint.open(model)
    try:
        checked = check_model(checkpoint, masks=masks, progress=progress)
        require_torch_linears(checked, "training")
        rows = windows(load_tokenizer(model), data, options.length)
        with stage(out, inputs=[model], force=force) as staging:
            # Imported here: bad input is told before torch and transformers are loaded.
            if method == "losa":
                from harness.methods.losa import train_losa

                losses = train_losa(
                    checked, rows, staging.path, options,
                    ranks=factors.rank, alpha=factors.alpha, r_ref=factors.rank, report=report,
                )  # fmt: skip
            else:
                from harness.methods.lora import train_lora

                losses = train_lora(
                    checked, rows, staging.path, options,
                    rank=factors.rank, alpha=factors.alpha, report=report,
                )  # fmt: skip
            staging.publish()
        return losses
    finally:
        checkpoint.close()
