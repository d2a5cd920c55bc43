"""The middle of the chain: adapters into the model, then the values that the target asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter import registry
from exporter.adapters.base import Adapter
from exporter.calibration.measure import measure_costs
from exporter.calibration.observe import Observed, observe, read_windows
from exporter.calibration.quantised import measure_quantised, measure_text
from exporter.calibration.request import CalibrationRequest
from exporter.contract import Calibrator, Progress, QuantiseRequest
from exporter.errors import UsageError
from exporter.listener import Stopwatch
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel, FusedModel
from exporter.quantise.stage import modules_of, quantise
from exporter.report.costs import CostsPart
from exporter.report.quantised import QuantisedPart
from exporter.request import ExportRequest

Weighted = tuple[Adapter, float]


@dataclass(frozen=True)
class Fused:
    """A model before and after its values are quantised, and what each step cost."""

    merged: FusedModel
    model: FusedModel  # `merged` itself where nothing was asked for
    costs: CostsPart | None = None  # of the merge; None without calibration or adapters
    quantised: QuantisedPart | None = None


@dataclass(frozen=True)
class Fusing:
    """What is merged and quantised, how, and who is told."""

    request: ExportRequest
    checked: CheckedModel
    adapters: Sequence[Weighted]
    quantise: QuantiseRequest | None
    watch: Stopwatch
    progress: Progress | None

    def run(self, work: Path | None) -> Fused:
        """Merge and quantise; what calibration measures is written to `work`, which must stay.

        Raises:
            InputRefused: what merging, calibration and quantising refuse.
            UsageError: `merge-policy-needed`, `usage`.
        """
        if self.request.calibration is not None and work is not None:
            return self._calibrated(self.request.calibration, work)
        with self.watch.stage("fuse"):
            merged = fuse(self.checked, self.adapters, self.request.policy, self.progress)
        if self.quantise is None:
            return Fused(merged, merged)
        model = quantise(merged, self.quantise)
        with self.watch.stage("measure costs"):
            part = measure_quantised(merged, model, self.quantise, progress=self.progress)
        return Fused(merged, model, quantised=part)

    def _calibrated(self, text: CalibrationRequest, work: Path) -> Fused:
        if not self.adapters and self.quantise is None:
            raise UsageError(
                "usage",
                "--calibration with nothing to measure",
                expected="--adapter, or a target that quantises values",
            )
        if self.request.policy is None:
            fuse(self.checked, self.adapters)  # a refusal must come before minutes of calibration
        calibrator = registry.load_calibrator()
        also = modules_of(self.checked, self.quantise) if self.quantise else frozenset[str]()
        with self.watch.stage("calibrate"):
            windows = read_windows(text, calibrator, self.checked)
            observed = observe(
                self.checked, self.adapters, windows, calibrator, work, self.progress, also
            )
        policy, bench = self.request.policy, observed.bench
        with self.watch.stage("fuse"):
            merged = fuse(self.checked, self.adapters, policy, self.progress, bench)
        costs = None
        if self.adapters:
            with self.watch.stage("measure costs"):
                costs = measure_costs(merged, observed, calibrator, self.progress)
        if self.quantise is None:
            return Fused(merged, merged, costs)
        before = costs.perplexity_merged if costs else observed.perplexity
        return self._quantised(
            self.quantise, Fused(merged, merged, costs), before, observed, calibrator
        )

    def _quantised(
        self,
        asked: QuantiseRequest,
        fused: Fused,
        before: float,
        observed: Observed,
        calibrator: Calibrator,
    ) -> Fused:
        with self.watch.stage("quantise"):
            model = quantise(fused.merged, asked, observed.bench, self.progress)
        with self.watch.stage("measure values"):
            text = measure_text(before, model, observed, calibrator, self.progress)
            part = measure_quantised(fused.merged, model, asked, text, observed, self.progress)
        return Fused(fused.merged, model, fused.costs, part)
