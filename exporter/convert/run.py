"""One conversion: read the adapter, write the new folder, read that back, compare, publish."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from exporter.adapters.base import Adapter, BaseBound, BaseIdentity, Delta
from exporter.adapters.load import load_adapter
from exporter.adapters.tiles import tiles
from exporter.arch.model_spec import ModelSpec
from exporter.arch.spec import load_spec
from exporter.check.arrange import arranged
from exporter.check.names import account
from exporter.check.shapes import check_shapes
from exporter.contract import Progress
from exporter.convert.base import Conversion, Source
from exporter.convert.lora import ToLora
from exporter.convert.table import ToTable
from exporter.errors import UsageError, VerificationFailed
from exporter.store.checkpoint import Checkpoint
from exporter.store.folder import stage

CONVERSIONS: dict[str, Conversion] = {c.name: c for c in (ToLora(), ToTable())}
_BOUND = 1e-6  # of the largest element; the formats fold scales at different places


@dataclass(frozen=True)
class ConvertRequest:
    """What to convert, for which base, into what and where."""

    adapter: Path
    model: Path
    to: str
    output: Path
    force: bool = False


@dataclass(frozen=True)
class Converted:
    """What was published."""

    family: str  # of the adapter that was read
    to: str
    modules: int
    largest_error: float  # over all modules, of the largest element; 0.0 where no bit differs


def convert(request: ConvertRequest, progress: Progress | None = None) -> Converted:
    """Carry out one conversion: the folder appears whole and compared, or not at all.

    Raises:
        UsageError: `usage` for an unknown format, `output-exists`, `output-inside-input`.
        InputRefused: `conversion-impossible`, and whatever is wrong with adapter or model.
        VerificationFailed: `verify-numbers` where the written deltas are not those that were read.
    """
    conversion = CONVERSIONS.get(request.to)
    if conversion is None:
        raise UsageError(
            "usage", f"--to {request.to}", expected=f"one of {', '.join(sorted(CONVERSIONS))}"
        )
    inputs = (request.adapter, request.model)
    with stage(request.output, inputs=inputs, force=request.force) as staging:
        spec, base = _base(request.model)
        adapter = load_adapter(request.adapter, spec, base)
        conversion.write(Source(adapter, request.adapter), spec, staging.path)
        error = _compare(adapter, load_adapter(staging.path, spec, base), base, progress)
        staging.publish()
    return Converted(adapter.family, request.to, len(adapter.deltas), error)


def _base(model: Path) -> tuple[ModelSpec, BaseIdentity]:
    """The base by its headers; its values are read where an adapter records a digest."""
    checkpoint = Checkpoint.open(model)
    spec = load_spec(checkpoint.config)
    checkpoint = arranged(checkpoint, spec)
    account(checkpoint, spec)
    check_shapes(checkpoint, spec)
    name = checkpoint.config.get("_name_or_path") or model.resolve().name
    rows = partial(_rows, checkpoint)
    return spec, BaseIdentity(str(name), checkpoint.identity, rows)


def _rows(checkpoint: Checkpoint, tensor: str) -> Any:
    return partial(checkpoint.rows, tensor)


def _compare(
    before: Adapter, after: Adapter, base: BaseIdentity, progress: Progress | None
) -> float:
    """Largest error of any module, against its largest element."""
    if before.deltas.keys() != after.deltas.keys():
        raise VerificationFailed("verify-numbers", "the written adapter has other modules")
    worst = 0.0
    for done, (module, delta) in enumerate(before.deltas.items()):
        apart = _apart(_bound(delta, module, base), _bound(after.deltas[module], module, base))
        if not apart <= _BOUND:
            raise VerificationFailed(
                "verify-numbers",
                f"the written delta differs by {apart:.3g} of its largest element",
                expected=f"at most {_BOUND:g}",
                tensor=module,
                hint="This is a bug: please report it.",
            )
        worst = max(worst, apart)
        if progress is not None:
            progress("compare", done + 1, len(before.deltas))
    return worst


def _bound(delta: Delta | BaseBound, module: str, base: BaseIdentity) -> Any:
    bind = getattr(delta, "bind", None)
    return delta if bind is None or base.rows is None else bind(base.rows(f"{module}.weight"), None)


def _apart(left: Delta, right: Delta) -> float:
    top = error = 0.0
    for r0, r1 in tiles(0, left.shape[0]):
        block = left.rows(r0, r1)
        top = max(top, float(np.abs(block).max()))
        error = max(error, float(np.abs(block - right.rows(r0, r1)).max()))
    return error / top if top else error
