"""The manifest of one export: digests of everything that went in and came out."""

from __future__ import annotations

from pathlib import Path

from exporter import __version__
from exporter.contract import Progress, Target
from exporter.model import FusedModel
from exporter.provenance import target_options
from exporter.request import AdapterRequest, ExportRequest
from exporter.store.manifest import (
    InputEntry,
    Manifest,
    TargetEntry,
    describe_files,
    describe_model,
    describe_outputs,
    library_versions,
)


def describe_inputs(
    request: ExportRequest, model: FusedModel, progress: Progress | None = None
) -> tuple[InputEntry, ...]:
    """Digests of model, masks file, adapters and texts, in that order; reads each file once."""
    entries = [describe_model(model.checked.checkpoint, progress)]
    if request.masks is not None:
        entries.append(describe_files("masks", request.masks.parent, [request.masks.name]))
    entries += [_adapter(a) for a in request.adapters]
    texts = request.calibration.files if request.calibration else ()
    entries += [describe_files("calibration", f.parent, [f.name]) for f in texts]
    return tuple(entries)


def make_manifest(
    target: Target, policy: str | None, folder: Path, inputs: tuple[InputEntry, ...]
) -> Manifest:
    """Digest every file and tensor that lies in `folder` now."""
    tensors = {stored.name: stored.sha256() for stored in target.read_back(folder)}
    options = {k: str(v) for k, v in target_options(target).items() if v is not None}
    return Manifest(
        schema=1,
        tool=__version__,
        libraries=_libraries(target),
        target=TargetEntry(
            name=target.name, options=options, needs=dict(getattr(target, "needs", {}))
        ),
        policy=policy,
        inputs=inputs,
        outputs=describe_outputs(folder, tensors),
    )


def _libraries(target: Target) -> dict[str, str]:
    return library_versions(getattr(target, "libraries", ()))


def _adapter(request: AdapterRequest) -> InputEntry:
    kinds = (".json", ".safetensors")
    names = [p.name for p in sorted(request.path.iterdir()) if p.suffix in kinds and p.is_file()]
    return describe_files("adapter", request.path, names, request.weight)
