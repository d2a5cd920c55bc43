"""Prune a Hugging Face folder into a new one, whole or not at all, with its masks and a record."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exporter.calibration.source import read_ids
from exporter.check.model import check_model
from exporter.contract import Progress
from exporter.errors import UsageError
from exporter.model import CheckedModel
from exporter.store.checkpoint import Checkpoint
from exporter.store.folder import stage
from harness.documents import FIELD, documents, joined_ids
from harness.hf import load_tokenizer
from harness.prune.output import MASKS, PrunedFolder
from harness.prune.passes import CALIBRATED, REWRITES, Method, prune_pass, require_fit
from harness.prune.plan import Plan, Rates, block_sizes, make_plan, wanted
from harness.prune.sparsity import Sparsity
from harness.text import BUILTIN, Tokens, cut, draw

__all__ = ["MASKS", "RECORD", "Calibration", "Method", "Pruned", "prune_folder"]
RECORD = Path("masks", "prune.json")
RANDOM = "random"  # ids drawn evenly by the seed: for times and memory, not for good masks
IDS = (".json", ".safetensors")  # files of token ids: they need no tokenizer


@dataclass(frozen=True)
class Calibration:
    """Text that a data-aware score is measured on: `samples` windows of `length` tokens."""

    # "random", token ids (.json, .safetensors), or what `documents` reads.
    source: str = BUILTIN
    samples: int = 32
    length: int = 128
    seed: int = 0
    field: str = FIELD  # of a JSON line or a dataset's row


@dataclass(frozen=True)
class Pruned:
    """What a run reached."""

    method: Method
    asked: str
    linears: int
    weights: int
    kept: int
    calibration: Calibration | None
    data_sha256: str | None = None  # of the token ids that were drawn
    plan: Plan = field(default_factory=lambda: Plan(()))
    reached: tuple[float, ...] = ()  # share of zeros of each block
    rates: Rates = field(default_factory=Rates)

    @property
    def sparsity(self) -> float:
        """Share of zeros over all pruned linears."""
        return 1.0 - self.kept / self.weights

    def record(self) -> dict[str, Any]:
        """For JSON: the resolved configuration, the hash of the data, and what was reached."""
        calibration = None if self.calibration is None else asdict(self.calibration)
        if calibration is not None:
            calibration["source"] = Path(calibration["source"]).name
        return {
            "schema": 2,
            "method": self.method,
            "asked": self.asked,
            "sparsity": self.sparsity,
            "linears": self.linears,
            "weights": self.weights,
            "kept": self.kept,
            "rewrites_kept_weights": self.method in REWRITES,
            "calibration": calibration,
            "data_sha256": self.data_sha256,
            "rates_from": {**asdict(self.rates), "source": Path(self.rates.source).name},
            "targets": [str(target) for target in self.plan.targets],
            "rates": self.plan.rates,
            "reached": list(self.reached),
            "importance": dict(self.plan.importance),
            "rank_correlation_with_rmi": dict(self.plan.correlation),
        }


def prune_folder(
    model: Path,
    out: Path,
    method: Method,
    sparsity: Sparsity,
    calibration: Calibration | None = None,
    *,
    rates: Rates | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Pruned:
    """Write `out`: config, tokenizer and weights of `model`, zeros in its linears, and masks.

    Every linear of the decoder's blocks is pruned; embedding, head, norms and biases stay. Types
    and names stay; shards become one file. The masks lie in `out/masks/masks.safetensors`, for
    `sparse-export --masks`, and the record of the run beside them.

    Raises:
        InputRefused: what `check_model` refuses; `data-invalid`, `input-missing` (text),
            `rates-invalid`, `arch-unsupported`.
        UsageError: `output-exists`, `output-inside-input`, `usage`.
        VerificationFailed: `values-not-finite`, `hessian-singular`.
    """
    rates = rates or Rates()
    checkpoint = Checkpoint.open(model)
    try:
        checked = check_model(checkpoint, progress=progress)
        require_fit(checked, method, (sparsity,))
        used = calibration or Calibration() if method in CALIBRATED or wanted(rates) else None
        tokens = None if used is None else _tokens(checked, used)
        with stage(out, inputs=[model], force=force) as staging:
            spare = staging.path / "spare"  # of a killed run, it goes with the staging folder
            spare.mkdir()
            plan = make_plan(
                checked.spec, sparsity, rates,
                lambda names: _observe(checked, tokens, names, rates, spare, progress),
            )  # fmt: skip
            written = _write(checked, method, plan, tokens, staging.path, spare, progress)
            shutil.rmtree(spare)
            report = _report(checked, method, sparsity, used, tokens, plan, written, rates)
            text = json.dumps(report.record(), indent=2, sort_keys=True) + "\n"
            (staging.path / RECORD).write_text(text, encoding="utf-8")
            staging.publish()
        return report
    finally:
        checkpoint.close()


def _tokens(checked: CheckedModel, used: Calibration) -> Tokens:
    """The windows of the run."""
    longest = checked.spec.max_positions
    if used.length > longest:
        raise UsageError(
            "usage",
            f"windows of {used.length} tokens",
            expected=f"at most the model's {longest}",
            hint="Give a smaller --length.",
        )
    root = checked.checkpoint.root
    if used.source == RANDOM:
        rng = np.random.default_rng(used.seed)
        return rng.integers(0, checked.spec.vocab, (used.samples, used.length))
    if Path(used.source).suffix in IDS:
        ids = read_ids(Path(used.source), lambda _: np.empty(0, np.int64), checked.spec.vocab)
    else:
        texts = documents(used.source, used.field)
        ids = joined_ids(load_tokenizer(root), texts)
    return draw(cut(ids, used.length, used.source), used.samples, used.seed)


def _observe(
    checked: CheckedModel,
    tokens: Tokens | None,
    names: Collection[str],
    rates: Rates,
    folder: Path,
    progress: Progress | None,
) -> dict[str, list[float]]:
    from harness.forms import require_torch_linears
    from harness.rates.observe import importances

    require_torch_linears(checked, "layer rates of")
    if tokens is None:
        return {}
    found = importances(checked, tokens, names, folder, beta=rates.beta, progress=progress)
    for file in folder.iterdir():
        file.unlink()
    return {name: values.tolist() for name, values in found.items()}


def _write(
    checked: CheckedModel,
    method: Method,
    plan: Plan,
    tokens: Tokens | None,
    out: Path,
    spare: Path,
    progress: Progress | None,
) -> PrunedFolder:
    folder = PrunedFolder(checked, out)
    try:
        for linear, kept, weight in prune_pass(
            checked, method, plan.targets, tokens, spare, progress
        ):
            folder.put(linear, kept, weight)
        folder.finish()
    finally:
        folder.close()
    return folder


def _report(
    checked: CheckedModel,
    method: Method,
    sparsity: Sparsity,
    used: Calibration | None,
    tokens: Tokens | None,
    plan: Plan,
    written: PrunedFolder,
    rates: Rates,
) -> Pruned:
    sizes = block_sizes(checked.spec)
    kept = [0] * len(sizes)
    for linear in checked.spec.linears():
        kept[linear.layer] += written.kept[linear.module]
    return Pruned(
        method=method,
        asked=str(sparsity),
        linears=len(written.kept),
        weights=sum(sizes),
        kept=sum(kept),
        calibration=used,
        data_sha256=None if tokens is None else hashlib.sha256(tokens.tobytes()).hexdigest(),
        plan=plan,
        reached=tuple(1 - k / n for k, n in zip(kept, sizes, strict=True)),
        rates=rates,
    )
