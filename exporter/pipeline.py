"""The chain: folder -> checked -> fused -> staged -> verified -> published. No step can be skipped.

Each function takes the type that the one before gives back, so an unverified artefact cannot
be published and an unchecked model cannot be fused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from exporter import registry
from exporter.adapters.base import Adapter
from exporter.artefact import StagedArtefact, VerifiedArtefact
from exporter.check.claims import check_claim
from exporter.check.masks import linear_shapes
from exporter.check.model import check_model
from exporter.contract import Diagnostic, LowerPlan, Progress, Target
from exporter.errors import InputRefused
from exporter.fusing import Fused, Fusing
from exporter.inputs import read_adapters
from exporter.listener import Listener, Silent, Stopwatch
from exporter.manifests import describe_inputs, make_manifest
from exporter.memory import peak_rss_bytes
from exporter.merge.agree import name_the_odd_one
from exporter.merge.policies import require_calibration
from exporter.model import CheckedModel, FusedModel
from exporter.provenance import build_report
from exporter.quantise.stage import wanted
from exporter.report.export import ExportReport, Measured
from exporter.report.inspect import InspectReport, report_of
from exporter.request import ExportRequest
from exporter.store.checkpoint import Checkpoint
from exporter.store.folder import Staging, require_space, scratch, stage
from exporter.store.masks import MasksFile
from exporter.verify.run import verify_staged

Choices = dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """What an export gave: the report that lies in the folder, and what this run cost."""

    report: ExportReport | None  # None after --lower-only: nothing was verified or published
    measured: Measured
    plan: LowerPlan
    diagnostics: tuple[Diagnostic, ...]  # of the target, then of the adapters


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before a byte is written."""

    request: ExportRequest
    target: Target
    fused: Fused
    adapters: tuple[tuple[Adapter, float], ...]
    diagnostics: tuple[Diagnostic, ...]
    plan: LowerPlan

    @property
    def model(self) -> FusedModel:
        """What is lowered: adapters in, values as the target asked for them."""
        return self.fused.model


def prepare(
    request: ExportRequest, watch: Stopwatch, progress: Progress | None, work: Path | None = None
) -> Prepared:
    """Open, check and fuse; ask the target. No tensor is kept, and nothing is written but what
    calibration measures: that goes to `work`, which must stay while the model is used.

    Raises:
        InputRefused: any fault of the inputs, or `target-refused`.
        UsageError: `unknown-target`, `target-option`, `merge-policy-needed`,
            `calibration-needed`.
    """
    require_calibration(request.policy, request.calibration is not None)
    target = registry.load_target(request.target, request.target_options)
    asked = wanted(target, request.calibration is not None)
    with watch.stage("read headers"):
        checkpoint = Checkpoint.open(request.model)
    with watch.stage("check"):
        checked = _checked(request, checkpoint, progress)
        if request.expect is not None:
            check_claim(request.expect, checked.patterns.values())
    with watch.stage("read adapters"):
        adapters = read_adapters(request, checked.checkpoint, checked.spec)
    fused = Fusing(request, checked, adapters, asked, watch, progress).run(work)
    diagnostics = tuple(target.inspect(fused.model))
    _stop_on_refusal(request.target, diagnostics)
    return Prepared(request, target, fused, adapters, diagnostics, target.plan(fused.model))


def _checked(
    request: ExportRequest, checkpoint: Checkpoint, progress: Progress | None
) -> CheckedModel:
    try:
        return check_model(checkpoint, masks=request.masks, progress=progress)
    except InputRefused as error:
        if error.code != "mask-mismatch" or request.masks is None or not request.adapters:
            raise
        # Model and masks file disagree: the adapters may tell which of them is wrong.
        model = check_model(checkpoint)
        adapters = read_adapters(request, model.checkpoint, model.spec)
        file = MasksFile.open(request.masks, linear_shapes(model.spec))
        raise name_the_odd_one(error, model, file, [a for a, _ in adapters]) from error


def export(request: ExportRequest, listener: Listener | None = None) -> Outcome:
    """Carry out one export: the output folder appears whole and verified, or not at all.

    Raises:
        SparseExportError: see `exporter.errors.CATALOGUE`; nothing was published then.
    """
    listener = listener or Silent()
    watch = Stopwatch(listener)
    baseline = peak_rss_bytes()
    with ExitStack() as stack:
        staging = stack.enter_context(
            stage(request.output, inputs=request.inputs, force=request.force)
        )
        work = stack.enter_context(scratch(staging)) if request.calibration else None
        prepared = prepare(request, watch, listener.progress, work)
        planned = sum(f.nbytes for f in prepared.plan.files)
        require_space(request.output.absolute().parent, planned)
        staged = _lower(prepared, staging, watch, listener.progress)
        report, choices = None, Choices()
        if not request.lower_only:
            report, choices = _verify_and_publish(prepared, staged, watch, listener)
    prepared.model.checked.checkpoint.close()
    lost = report.accounting.warning() if report else None
    told = (*prepared.diagnostics, *_warnings(prepared.adapters, lost))
    return Outcome(report, _measured(prepared, watch, baseline, choices), prepared.plan, told)


def _warnings(adapters: Iterable[tuple[Adapter, float]], lost: str | None) -> Iterator[Diagnostic]:
    if lost is not None:
        yield Diagnostic("warning", lost)
    for adapter, _ in adapters:
        texts = [*adapter.facts.get("warnings", ()), adapter.facts.get("base_warning")]
        yield from (Diagnostic("warning", f"adapter {adapter.name}: {t}") for t in texts if t)


def _stop_on_refusal(target: str, diagnostics: tuple[Diagnostic, ...]) -> None:
    refusals = [d for d in diagnostics if d.level == "refusal"]
    if refusals:
        first = refusals[0]
        raise InputRefused(
            "target-refused",
            f"{target}: " + "; ".join(d.message for d in refusals),
            tensor=first.where or None,
        )


def _lower(
    prepared: Prepared, staging: Staging, watch: Stopwatch, progress: Progress
) -> StagedArtefact:
    with watch.stage("lower"):
        prepared.target.lower(prepared.model, staging.path, progress)
    return StagedArtefact(staging, prepared.model, prepared.target)


def _verify_and_publish(
    prepared: Prepared, staged: StagedArtefact, watch: Stopwatch, listener: Listener
) -> tuple[ExportReport, Choices]:
    with watch.stage("verify"):
        verification = verify_staged(
            prepared.target,
            prepared.model,
            staged.folder,
            reference_opener=registry.load_reference(),
            load_target=registry.load_target,
            bisect=prepared.request.bisect,
            progress=listener.progress,
        )
    verified = VerifiedArtefact(staged, verification)
    with watch.stage("hash and publish"):
        inputs = describe_inputs(prepared.request, prepared.model, listener.progress)
        report = build_report(
            prepared.target,
            prepared.fused,
            prepared.adapters,
            prepared.diagnostics,
            staged.folder,
            verification,
            listener.progress,
        )
        verified.publish(
            report,
            _unnamed(report_of(prepared.model.checked)),
            lambda: make_manifest(prepared.target, prepared.request.policy, staged.folder, inputs),
        )
    return report, verification.numbers.choices if verification.numbers else Choices()


def _unnamed(sparsity: InspectReport) -> InspectReport:
    """Without the folder's name: equal inputs elsewhere give equal bytes."""
    return sparsity.model_copy(update={"model": sparsity.family or "model"})


def _measured(prepared: Prepared, watch: Stopwatch, baseline: int, choices: Choices) -> Measured:
    largest = max(math.prod(t.shape) * 4 for t in prepared.model.tensors.values())
    return Measured(
        seconds=dict(watch.seconds),
        peak_rss_bytes=peak_rss_bytes(),
        baseline_rss_bytes=baseline,
        largest_tensor_bytes=largest,
        choices=choices,
    )
