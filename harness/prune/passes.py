"""One pass over the model for each method: `(linear, kept positions, new weight or None)`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from exporter.arch.model_spec import Linear
from exporter.contract import Progress
from exporter.errors import UsageError
from exporter.model import CheckedModel
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32
from harness.forms import require_torch_linears
from harness.prune.magnitude import magnitude
from harness.prune.sparsity import NM, Sparsity
from harness.text import Tokens

Method = Literal["magnitude", "wanda", "sparsegpt", "alps", "pruner-zero", "wanda-sp"]
CALIBRATED: tuple[Method, ...] = ("wanda", "sparsegpt", "alps", "pruner-zero", "wanda-sp")
REWRITES: tuple[Method, ...] = ("sparsegpt", "alps")  # kept weights are other ones
Result = tuple[Linear, Bools, F32 | None]
SPILL_BYTES = 1 << 30  # hidden states beyond this wait on disk


def require_fit(checked: CheckedModel, method: Method, targets: Sequence[Sparsity]) -> None:
    """Refuse what the method cannot do with this model, before anything is computed.

    Raises:
        InputRefused: `arch-unsupported`.
        UsageError: `usage`.
    """
    if method in CALIBRATED:
        require_torch_linears(checked, f"{method} on")
    least = min(linear.in_features for linear in checked.spec.linears())
    groups = [target for target in targets if isinstance(target, NM)]
    if groups and groups[0].m > least:
        raise UsageError(
            "usage",
            f"--sparsity {groups[0]} for a linear of {least} inputs",
            expected="groups that a row has at least one of",
        )
    if method == "wanda-sp":
        from harness.prune.wanda_sp import require_units

        require_units(checked.spec)
        if groups:
            raise UsageError("usage", f"wanda-sp to {groups[0]}", expected='a share, as "0.2"')


def prune_pass(
    checked: CheckedModel,
    method: Method,
    targets: Sequence[Sparsity],
    tokens: Tokens | None,
    folder: Path,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Prune every linear, in the order that suits the method.

    Args:
        checked: the model.
        method: which.
        targets: of each block.
        tokens: calibration windows `[n, length]`; None for magnitude.
        folder: empty, on disk, for what does not fit in memory.
        progress: told after each block.
    """
    if tokens is None or method == "magnitude":
        return _stored(checked, targets, progress)
    if method == "pruner-zero":
        return _by_gradient(checked, targets, tokens, folder, progress)
    if method == "wanda-sp":
        from harness.prune.structured import prune_units

        return prune_units(checked, targets, tokens, progress)
    return _streamed(checked, method, targets, tokens, folder, progress)


def _stored(
    checked: CheckedModel, targets: Sequence[Sparsity], progress: Progress | None
) -> Iterator[Result]:
    linears = checked.spec.linears()
    for done, linear in enumerate(linears, start=1):
        weight = checked.checkpoint.rows(linear.weight)
        yield linear, magnitude(weight, targets[linear.layer]), None
        if progress is not None:
            progress("linears", done, len(linears))


def _by_gradient(
    checked: CheckedModel,
    targets: Sequence[Sparsity],
    tokens: Tokens,
    folder: Path,
    progress: Progress | None,
) -> Iterator[Result]:
    from harness.prune.gradients import block_squares
    from harness.prune.pruner_zero import pruner_zero

    linears = {linear.module: linear for linear in checked.spec.linears()}
    for index, squares in block_squares(checked, tokens, folder, progress):
        for module, (weight, total) in squares.items():
            yield linears[module], pruner_zero(weight.numpy(), total.numpy(), targets[index]), None


def _streamed(
    checked: CheckedModel,
    method: Method,
    targets: Sequence[Sparsity],
    tokens: Tokens,
    folder: Path,
    progress: Progress | None,
) -> Iterator[Result]:
    # Imported here: magnitude needs no torch.
    import torch

    from harness.prune.alps import alps
    from harness.prune.sparsegpt import sparsegpt
    from harness.prune.stream import prune_stream
    from harness.prune.wanda import wanda

    def one(
        linear: Linear, weight: torch.Tensor, seen: torch.Tensor
    ) -> tuple[torch.Tensor | None, Bools]:
        target = targets[linear.layer]
        if method == "wanda":
            return None, wanda(weight.numpy(), seen.numpy(), target)
        return (sparsegpt if method == "sparsegpt" else alps)(weight, seen, target)

    size = tokens.size * checked.spec.hidden * np.dtype(np.float32).itemsize
    spill = folder if size > SPILL_BYTES else None
    wants = "norms" if method == "wanda" else "grams"
    return prune_stream(checked, tokens, wants, one, spill=spill, progress=progress)
