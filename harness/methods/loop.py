"""The training loop that the methods share: next-token loss, AdamW, linear warm-up and decay."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from exporter.errors import VerificationFailed
from harness.methods.options import Report, Training
from harness.text import Tokens


@contextmanager
def reproducible(seed: int) -> Generator[None]:
    """Equal seeds give equal bits on one machine and thread count; torch's state is put back."""
    before = torch.are_deterministic_algorithms_enabled()
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_rng_state(state)


def train(model: Any, rows: Tokens, options: Training, report: Report) -> list[float]:
    """Train what requires a gradient in `model` on windows `rows [n, length]`; loss per step.

    Raises:
        VerificationFailed: `training-failed` where loss or gradient is NaN or infinite.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: _rate(t, options))
    model.train()
    losses: list[float] = []
    for step, batch in enumerate(_batches(rows, options), start=1):
        ids = torch.from_numpy(batch)
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, options.max_norm)
        losses.append(_finite(loss, norm, step))
        optimiser.step()
        schedule.step()
        report(step, losses[-1])
    model.eval()
    return losses


def _rate(done: int, options: Training) -> float:
    warm = max(1, round(options.warmup * options.steps))
    if done < warm:
        return (done + 1) / warm
    return max(0.0, (options.steps - done) / max(1, options.steps - warm))


def _batches(rows: Tokens, options: Training) -> Iterator[Tokens]:
    """`steps` batches; each pass over the windows is in a new order."""
    rng = np.random.default_rng(options.seed)
    need = options.steps * options.batch
    passes = -(-need // len(rows))
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(passes)])
    for i in range(0, need, options.batch):
        yield rows[order[i : i + options.batch]]


def _finite(loss: torch.Tensor, norm: torch.Tensor, step: int) -> float:
    value = float(loss.detach())
    if math.isfinite(value) and math.isfinite(float(norm)):
        return value
    raise VerificationFailed(
        "training-failed",
        f"step {step}: loss {value}, gradient norm {float(norm)}",
        expected="finite numbers",
        hint="Lower --lr, or look for NaN in the model; nothing was written.",
    )
