"""Find the first layer whose hidden state leaves the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from exporter.contract import ReferenceSession, Target
from exporter.errors import SparseExportError
from exporter.store.dtypes import F32
from exporter.verify.result import BisectResult, LayerError
from exporter.verify.rows import TINY

HEAD = "head"


def bisect(
    target: Target, reference: ReferenceSession, folder: Path, tokens: Sequence[int]
) -> BisectResult:
    """Compare every hidden state of one prefill; name the first beyond the target's tolerance.

    All states come from one run, so looking at each is cheaper than halving. Where the states
    agree, the logits of the target's session are compared and `first` is "head" if they differ.

    Args:
        target: gives its states by `probe`.
        reference: gives its states by `hidden_states`.
        folder: the artefact.
        tokens: a prompt.
    """
    allowed = target.tolerance.max_rel
    want = reference.hidden_states(tokens)
    try:
        got = target.probe(folder, tokens)
    except (SparseExportError, NotImplementedError) as error:
        return BisectResult(
            first=None, allowed_rel=allowed, layers=(), note=f"no hidden states: {error}"
        )
    layers = [_distance(key, got.get(key), state) for key, state in want.items()]
    first = next((e.layer for e in layers if not e.max_rel <= allowed), None)
    if first is None:
        layers.append(_head(target, reference, folder, tokens))
        first = HEAD if not layers[-1].max_rel <= allowed else None
    note = "" if first else "no state leaves tolerance in prefill: look at the cache"
    return BisectResult(first=first, allowed_rel=allowed, layers=tuple(layers), note=note)


def _head(
    target: Target, reference: ReferenceSession, folder: Path, tokens: Sequence[int]
) -> LayerError:
    session = target.open(folder)
    try:
        return _distance(HEAD, session.prefill(tokens), reference.prefill(tokens))
    finally:
        session.close()


def _distance(layer: str, got: F32 | None, want: F32) -> LayerError:
    """Largest error over positions, each relative to the largest value of its own state."""
    if got is None or got.shape != want.shape:
        return LayerError(layer=layer, max_abs=float("inf"), max_rel=float("inf"))
    error = np.abs(got.astype(np.float64) - want).max(axis=1)
    error = np.where(np.isfinite(error), error, np.inf)
    scale = np.maximum(np.abs(want.astype(np.float64)).max(axis=1), TINY)
    return LayerError(layer=layer, max_abs=float(error.max()), max_rel=float((error / scale).max()))
