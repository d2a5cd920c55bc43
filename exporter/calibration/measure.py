"""From what calibration observed and a merged model: the costs, as the report holds them."""

from __future__ import annotations

from exporter.calibration.costs import mean_relative, module_errors
from exporter.calibration.observe import Observed, perplexity
from exporter.contract import Calibrator, Progress
from exporter.model import FusedModel
from exporter.report.costs import CostsPart, ModuleCost


def measure_costs(
    model: FusedModel,
    observed: Observed,
    calibrator: Calibrator,
    progress: Progress | None = None,
) -> CostsPart:
    """Run the merged model on the held-out text, and sum the output errors of its modules.

    Raises:
        InputRefused: what `Calibrator.observe` raises.
    """
    errors = module_errors(model, observed.bench, progress)
    error, masked = mean_relative(errors)
    windows = observed.windows
    policies = model.record["modules"]
    return CostsPart(
        observed_tokens=windows.observed * windows.ids.shape[1],
        held_out_tokens=windows.held_out * windows.ids.shape[1],
        window=windows.ids.shape[1],
        perplexity_unmerged=observed.perplexity,
        perplexity_merged=perplexity(model, windows, calibrator, progress),
        error=error,
        error_masked=masked,
        modules={
            module: ModuleCost(
                policy=policies[module]["policy"],
                error=e.relative,
                error_masked=e.relative_masked,
            )
            for module, e in errors.items()
        },
    )
