"""The adapters of a request, read for the base that they were given with."""

from __future__ import annotations

from functools import partial

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.load import load_adapter
from exporter.arch.model_spec import ModelSpec
from exporter.request import ExportRequest
from exporter.store.checkpoint import Checkpoint


def read_adapters(
    request: ExportRequest, checkpoint: Checkpoint, spec: ModelSpec
) -> tuple[tuple[Adapter, float], ...]:
    """Each adapter with its weight, in the order given.

    The base goes by the name that its config records, else by that of its folder.

    Raises:
        InputRefused: what `load_adapter` raises.
    """
    recorded = checkpoint.config.get("_name_or_path")
    name = recorded if isinstance(recorded, str) and recorded else request.model.resolve().name
    base = BaseIdentity(name, checkpoint.identity, lambda t: partial(checkpoint.rows, t))
    return tuple((load_adapter(a.path, spec, base), a.weight) for a in request.adapters)
