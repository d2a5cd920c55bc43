"""A fused model as far as headers tell: for `--plan`, which reads no weight of the model.

Two exceptions: an adapter that records its base's digest (LoSA) has the base hashed, and a target
that packs has the masks counted, which may be the zeros of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from exporter.adapters.base import Adapter
from exporter.arch.spec import load_spec
from exporter.check.arrange import arranged
from exporter.check.dtypes import check_dtypes
from exporter.check.masks import FileMasks, ZerosMasks, linear_shapes
from exporter.check.names import account
from exporter.check.shapes import check_shapes
from exporter.check.vocab import check_vocab
from exporter.inputs import read_adapters
from exporter.merge.policies import require_calibration
from exporter.model import CheckedModel, FusedModel, FusedTensor, LowRank, RowReader
from exporter.request import ExportRequest
from exporter.store.checkpoint import Checkpoint
from exporter.store.masks import MasksFile
from exporter.store.plainfile import stamp_file


def header_model(request: ExportRequest) -> FusedModel:
    """The model's tensors by name and shape, with what the adapters would change marked.

    Raises:
        InputRefused: a fault that the headers of model, masks file or adapters show.
        UsageError: `usage` for an unknown merge policy, `calibration-needed`.
    """
    require_calibration(request.policy, request.calibration is not None)
    for text in request.calibration.files if request.calibration else ():
        stamp_file(text)
    checked = _checked(Checkpoint.open(request.model))
    checkpoint = checked.checkpoint
    if request.masks is not None:
        file = MasksFile.open(request.masks, linear_shapes(checked.spec))
        checked = replace(checked, masks=FileMasks(file))
    adapters = [adapter for adapter, _ in read_adapters(request, checkpoint, checked.spec)]
    separate = request.policy == "separate"
    changed = {f"{module}.weight" for a in adapters for module in a.deltas}
    changed |= {r.tensor for a in adapters for r in a.replacements}
    tensors = {
        name: FusedTensor(name, shape, _reader(checkpoint, name), changed=name in changed)
        for name, shape in checked.spec.tensors().items()
    }
    branches = _branches(adapters) if separate else {}
    return FusedModel(checked, tensors, branches, checked.spec.tied, {"policy": request.policy})


def _checked(checkpoint: Checkpoint) -> CheckedModel:
    spec = load_spec(checkpoint.config)
    checkpoint = arranged(checkpoint, spec)
    check_dtypes(checkpoint)
    dropped = account(checkpoint, spec)
    check_vocab(checkpoint, spec)
    check_shapes(checkpoint, spec)
    return CheckedModel(checkpoint, spec, {}, ZerosMasks(checkpoint), spec.tied, dropped)


def _reader(checkpoint: Checkpoint, name: str) -> RowReader:
    return lambda r0, r1: checkpoint.rows(name, r0, r1)


def _branches(adapters: Iterable[Adapter]) -> dict[str, LowRank]:
    found: dict[str, LowRank] = {}
    for adapter in adapters:
        for module, delta in adapter.deltas.items():
            factors = getattr(delta, "low_rank", None)  # a delta bound to the base has none
            branch = factors() if factors else None
            if branch is not None:
                found[module] = branch
    return found
