"""From a model before and after quantising: the costs, as the report holds them."""

from __future__ import annotations

from dataclasses import asdict

from exporter.calibration.observe import Observed, perplexity
from exporter.contract import Calibrator, Progress, QuantiseRequest
from exporter.model import FusedModel
from exporter.quantise.measure import losses
from exporter.report.quantised import QuantisedModule, QuantisedPart, QuantisedText


def measure_quantised(
    merged: FusedModel,
    model: FusedModel,
    request: QuantiseRequest,
    text: QuantisedText | None = None,
    observed: Observed | None = None,
    progress: Progress | None = None,
) -> QuantisedPart:
    """The losses of every linear that `request` quantised, beside `text`.

    Args:
        merged: before.
        model: after.
        request: what was asked for.
        text: `measure_text`, with calibration.
        observed: where calibration left its Gram matrices.
        progress: told after each linear.
    """
    found = losses(merged, model, observed.bench if observed else None, progress)
    return QuantisedPart(
        kind=request.kind,
        group=request.group,
        method=request.method,
        modules={module: QuantisedModule(**asdict(loss)) for module, loss in found.items()},
        text=text,
    )


def measure_text(
    before: float,
    model: FusedModel,
    observed: Observed,
    calibrator: Calibrator,
    progress: Progress | None = None,
) -> QuantisedText:
    """Run the quantised model on the held-out text; `before` is the perplexity without.

    Raises:
        InputRefused: what `Calibrator.observe` raises.
    """
    windows = observed.windows
    return QuantisedText(
        observed_tokens=windows.observed * windows.ids.shape[1],
        held_out_tokens=windows.held_out * windows.ids.shape[1],
        window=windows.ids.shape[1],
        perplexity_before=before,
        perplexity_after=perplexity(model, windows, calibrator, progress),
    )
