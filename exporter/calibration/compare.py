"""Every merge policy on one model and its adapters: what each costs, in one table."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from exporter import __version__
from exporter.adapters.base import Adapter
from exporter.adapters.tiles import tiles
from exporter.calibration.costs import mean_relative, module_errors
from exporter.calibration.observe import Observed, observe, perplexity, read_windows
from exporter.calibration.request import CalibrationRequest
from exporter.contract import Calibrator
from exporter.errors import UsageError
from exporter.listener import Listener
from exporter.merge.fuse import fuse
from exporter.merge.measure import measure
from exporter.model import CheckedModel, FusedModel
from exporter.report.policies import PoliciesReport, PolicyRow
from exporter.sparsity.pattern import model_pattern
from exporter.verify.structure import block_rows

Weighted = tuple[Adapter, float]


def compare_policies(
    checked: CheckedModel,
    adapters: Sequence[Weighted],
    request: CalibrationRequest,
    policies: Sequence[str],
    calibrator: Calibrator,
    work: Path,
    listener: Listener,
) -> PoliciesReport:
    """Merge by each of `policies` in turn and measure it; nothing is written but into `work`.

    Raises:
        InputRefused: what calibration refuses.
        UsageError: `usage`.
    """
    listener.stage("calibrate")
    windows = read_windows(request, calibrator, checked)
    observed = observe(checked, adapters, windows, calibrator, work, listener.progress)
    listener.stage("base alone")
    alone = perplexity(fuse(checked, []), windows, calibrator, listener.progress)
    rows = [_row(checked, adapters, p, observed, calibrator, listener) for p in policies]
    patterns = list(checked.patterns.values())
    shape = windows.ids.shape[1]
    return PoliciesReport(
        tool=f"sparse-export {__version__}",
        family=checked.spec.family,
        pattern=str(model_pattern(patterns)),
        linears=len(patterns),
        linears_lossy=len(fuse(checked, adapters, "densify").densified),
        sparsity=1.0 - sum(p.kept for p in patterns) / _weights(checked),
        adapters=tuple(a.family for a, _ in adapters),
        observed_tokens=windows.observed * shape,
        held_out_tokens=windows.held_out * shape,
        window=shape,
        texts=tuple(f.name for f in request.files),
        perplexity_base=alone,
        perplexity_unmerged=observed.perplexity,
        rows=tuple(rows),
    )


def _row(
    checked: CheckedModel,
    adapters: Sequence[Weighted],
    policy: str,
    observed: Observed,
    calibrator: Calibrator,
    listener: Listener,
) -> PolicyRow:
    listener.stage(policy)
    start = time.perf_counter()
    try:
        model = fuse(checked, adapters, policy, listener.progress, observed.bench)
    except UsageError as error:
        if error.code not in ("usage", "merge-policy-needed"):
            raise
        return PolicyRow(policy=policy, impossible=error.found)
    figures = measure(model, progress=listener.progress)
    seconds = time.perf_counter() - start
    norm = math.fsum(f["norm"] ** 2 for f in figures.values())
    lost = math.fsum(f["norm_lost"] ** 2 for f in figures.values())
    errors = module_errors(model, observed.bench, listener.progress)
    return PolicyRow(
        policy=policy,
        sparsity=1.0 - _kept(model) / _weights(checked),
        branches=len(model.branches),
        norm_lost=math.sqrt(lost / norm) if norm else 0.0,
        positions_moved=sum(f["moved"] for f in figures.values()),
        error=mean_relative(errors)[0],
        perplexity=perplexity(model, observed.windows, calibrator, listener.progress),
        seconds=round(seconds, 3),
    )


def _weights(checked: CheckedModel) -> int:
    return sum(p.out_features * p.in_features for p in checked.patterns.values())


def _kept(model: FusedModel) -> int:
    """Weights that are not zero; only where zeros were given up they have to be counted."""
    patterns = model.checked.patterns
    kept = sum(p.kept for m, p in patterns.items() if m not in model.densified)
    for module in model.densified & patterns.keys():
        tensor = model.tensors[f"{module}.weight"]
        spans = tiles(0, tensor.shape[0], block_rows(tensor.shape))
        kept += sum(int((tensor.rows(r0, r1) != 0).sum()) for r0, r1 in spans)
    return kept
