"""Several kinds of quantised values on one model: what each costs, in one table."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporter import __version__
from exporter.adapters.base import Adapter
from exporter.calibration.observe import Observed, observe, perplexity, read_windows
from exporter.calibration.request import CalibrationRequest
from exporter.contract import Calibrator, QuantiseRequest
from exporter.listener import Listener
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel, FusedModel, FusedTensor, RowReader
from exporter.quantise.measure import ModuleLoss, losses
from exporter.quantise.stage import modules_of, quantise
from exporter.report.values import ValuesReport, ValuesRow
from exporter.sparsity.pattern import model_pattern
from exporter.store.dtypes import F32, DType, round_float32, to_float32


@dataclass(frozen=True)
class Compared:
    """A model and the text that it is measured on."""

    checked: CheckedModel
    text: CalibrationRequest
    adapters: Sequence[tuple[Adapter, float]] = ()
    policy: str | None = None  # by which they are merged


def compare_values(
    what: Compared,
    requests: Sequence[QuantiseRequest],
    calibrator: Calibrator,
    work: Path,
    listener: Listener,
) -> ValuesReport:
    """Merge, then quantise by each of `requests` in turn and measure; writes only into `work`.

    Raises:
        InputRefused: what calibration, merging and quantising refuse.
        UsageError: `usage`, `target-option`, `merge-policy-needed`.
    """
    checked, adapters, progress = what.checked, what.adapters, listener.progress
    listener.stage("calibrate")
    windows = read_windows(what.text, calibrator, checked)
    modules = frozenset[str]().union(*(modules_of(checked, r) for r in requests))
    observed = observe(checked, adapters, windows, calibrator, work, progress, modules)
    listener.stage("fuse")
    model = fuse(checked, adapters, what.policy, progress, observed.bench)
    listener.stage("not quantised")
    dtype = checked.checkpoint.entries[checked.spec.embedding].dtype
    before = perplexity(as_stored(model, dtype), windows, calibrator, progress)
    rows = [_row(model, request, observed, calibrator, listener) for request in requests]
    patterns, shape = list(checked.patterns.values()), windows.ids.shape[1]
    weights = sum(p.out_features * p.in_features for p in patterns)
    return ValuesReport(
        tool=f"sparse-export {__version__}",
        family=checked.spec.family,
        pattern=str(model_pattern(patterns)),
        sparsity=1.0 - sum(p.kept for p in patterns) / weights,
        stored=dtype.value.lower(),
        adapters=tuple(a.family for a, _ in adapters),
        policy=what.policy,
        linears=len(modules),
        observed_tokens=windows.observed * shape,
        held_out_tokens=windows.held_out * shape,
        window=shape,
        texts=tuple(f.name for f in what.text.files),
        perplexity=before,
        rows=tuple(rows),
    )


def as_stored(model: FusedModel, dtype: DType) -> FusedModel:
    """Every value rounded once to `dtype`, as float32."""

    def rounded(tensor: FusedTensor) -> RowReader:
        def rows(r0: int, r1: int) -> F32:
            return to_float32(round_float32(tensor.rows(r0, r1), dtype, tensor=tensor.name))

        return rows

    tensors = {n: replace(t, rows=rounded(t)) for n, t in model.tensors.items()}
    return replace(model, tensors=tensors)


def _row(
    model: FusedModel,
    request: QuantiseRequest,
    observed: Observed,
    calibrator: Calibrator,
    listener: Listener,
) -> ValuesRow:
    listener.stage(f"{request.kind} {request.method}")
    start = time.perf_counter()
    quantised = quantise(model, request, observed.bench, listener.progress)
    seconds = time.perf_counter() - start
    found = list(losses(model, quantised, observed.bench, listener.progress).values())
    return ValuesRow(
        kind=request.kind,
        group=request.group,
        method=request.method,
        weight=_mean([loss.weight for loss in found]),
        weight_max=max((loss.weight_max for loss in found), default=0.0),
        zeroed=sum(loss.zeroed for loss in found),
        error=_mean([_error(loss) for loss in found]),
        perplexity=perplexity(quantised, observed.windows, calibrator, listener.progress),
        seconds=round(seconds, 3),
    )


def _error(loss: ModuleLoss) -> float:
    return math.nan if loss.error is None else loss.error


def _mean(values: list[float]) -> float:
    return math.fsum(values) / max(1, len(values))
