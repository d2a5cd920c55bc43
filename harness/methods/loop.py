"""The training loop that the methods share: next-token loss, AdamW, linear warm-up and decay.

accelerate places the model, wraps it for several processes, and casts for mixed precision.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from exporter.errors import UsageError, VerificationFailed
from harness.methods import shard
from harness.methods.base import Adaptation
from harness.methods.checkpoint import StepStore
from harness.methods.options import Report, Training
from harness.methods.world import sharded
from harness.text import Tokens

_NO_MEMORY = ("out of memory", "allocate memory", "not enough memory")


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


class Loop:
    """One stretch of training; `run` may start from a checkpoint.

    Args:
        adaptation: the method on its model; what it trains is what requires a gradient.
        rows: windows of token ids `[n, length]`.
        options: of the run.
        store: where checkpoints go; None for none.

    Raises:
        UsageError: `usage` where a batch cannot be shared among processes and parts.
    """

    def __init__(
        self,
        adaptation: Adaptation,
        rows: Tokens,
        options: Training,
        store: StepStore | None = None,
    ) -> None:
        self.adaptation, self.rows, self.options, self.store = adaptation, rows, options, store
        self._accelerator: Any = _accelerator(options)
        self._params = list(adaptation.trained.values())
        self._sharded = sharded()
        self._model: Any = (
            shard.cut(adaptation.model, self._params, self._accelerator.device)
            if self._sharded
            else self._accelerator.prepare_model(adaptation.model)
        )
        self.optimiser = torch.optim.AdamW(
            adaptation.groups(options), lr=options.lr, weight_decay=options.weight_decay
        )
        self._peaks = [float(group["lr"]) for group in self.optimiser.param_groups]
        parts = options.accumulate * self._accelerator.num_processes
        if options.batch % parts:
            raise UsageError(
                "usage",
                f"a batch of {options.batch} in {options.accumulate} parts on "
                f"{self._accelerator.num_processes} processes",
                expected="a batch that they divide",
            )
        self._micro = options.batch // parts

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self._accelerator.is_main_process)

    def run(self, report: Report, *, resume: bool = False) -> list[float]:
        """Train; the loss of each step, those before a checkpoint included.

        Raises:
            VerificationFailed: `training-failed` where loss or gradient is no finite number, the
                memory is at its end, or a step broke the mask. The last checkpoint stays.
        """
        losses: list[float] = []
        if resume and self.store is not None and self.store.exists():
            losses = self.store.load(self.adaptation, self.optimiser)
        self._model.train()
        start = len(losses)
        for step, batch in enumerate(_batches(self.rows, self.options)):
            if step < start:
                continue
            with _phases(step + 1):
                losses.append(self._step(step, batch))
            report(step + 1, losses[-1])
            every = self.options.save_every
            if every and (step + 1) % every == 0 and step + 1 < self.options.steps:
                self._save(step + 1, losses)
        shard.gather(self._model)
        self.adaptation.verify()
        self._model.eval()
        return losses

    def _save(self, done: int, losses: list[float]) -> None:
        with shard.gathered(self._model):
            self.adaptation.verify()  # a checkpoint is a good one
        if self.store is not None and self.main:
            self.store.save(done, self.adaptation, self.optimiser, losses)
        self._accelerator.wait_for_everyone()

    def _step(self, step: int, batch: Tokens) -> float:
        rate = _rate(step, self.options)
        for group, peak in zip(self.optimiser.param_groups, self._peaks, strict=True):
            group["lr"] = peak * rate
        self.adaptation.begin_step(step)
        for parameter in self.adaptation.dropped():
            self.optimiser.state.pop(parameter, None)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._gradients(batch)
        self.adaptation.after_backward()
        norm = torch.nn.utils.clip_grad_norm_(self._params, self.options.max_norm)
        value = self._finite(loss, norm, step + 1)
        self.optimiser.step()
        self.adaptation.after_step(step)
        return value

    def _gradients(self, batch: Tokens) -> torch.Tensor:
        """Backward of the mean loss of the batch; gives that mean over all processes."""
        first = self._accelerator.process_index * self.options.accumulate * self._micro
        parts = range(first, first + self.options.accumulate * self._micro, self._micro)
        total = torch.zeros((), device=self._accelerator.device)
        for i in parts:
            last = i == parts[-1]
            ids = torch.from_numpy(batch[i : i + self._micro]).to(self._accelerator.device)
            with self._part(last):
                loss = self._model(input_ids=ids, labels=ids).loss / self.options.accumulate
                total += loss.detach()
                extra = self.adaptation.penalty() if last else None
                self._accelerator.backward(loss if extra is None else loss + extra)
        if self._sharded:
            shard.average_gradients(self._params, self._accelerator)
        return self._accelerator.reduce(total, reduction="mean")

    def _part(self, last: bool) -> Any:
        """Around forward and backward of one part of a batch."""
        if self._sharded:
            return self._accelerator.autocast()  # `prepare_model` gives it to a model of its own
        return nullcontext() if last else self._accelerator.no_sync(self._model)

    def _finite(self, loss: torch.Tensor, norm: torch.Tensor, step: int) -> float:
        value = float(loss)
        if math.isfinite(value) and math.isfinite(float(norm)):
            return value
        bad = next(
            (n for n, p in self.adaptation.trained.items() if not _is_finite(p.grad)), None
        ) or next((n for n, p in self.adaptation.trained.items() if not _is_finite(p)), None)
        raise VerificationFailed(
            "training-failed",
            f"step {step}: loss {value}, gradient norm {float(norm)}",
            expected="finite numbers",
            tensor=bad,
            hint="Lower --lr, or look for NaN in the model; nothing was written, and the last "
            "checkpoint, if one was taken, is whole.",
        )


def train(
    adaptation: Adaptation,
    rows: Tokens,
    options: Training,
    report: Report,
    store: StepStore | None = None,
    *,
    resume: bool = False,
) -> list[float]:
    """Train `adaptation` on windows `rows [n, length]`; see `Loop`."""
    return Loop(adaptation, rows, options, store).run(report, resume=resume)


def _accelerator(options: Training) -> Any:
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    # One process may train with different precisions in turn, as `compare` does.
    AcceleratorState._reset_state(reset_partial_state=False)  # pyright: ignore[reportPrivateUsage]
    # Masks and indices are buffers that no step changes.
    apart = DistributedDataParallelKwargs(broadcast_buffers=False)
    cpu = not torch.cuda.is_available()
    return Accelerator(mixed_precision=options.precision, cpu=cpu, kwargs_handlers=[apart])


def _is_finite(values: torch.Tensor | None) -> bool:
    return values is None or bool(torch.isfinite(values).all())


@contextmanager
def _phases(step: int) -> Generator[None]:
    """Running out of memory becomes a typed error."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError) and not any(t in text for t in _NO_MEMORY):
            raise
        raise VerificationFailed(
            "training-failed",
            f"step {step}: out of memory ({str(error).splitlines()[0] if text else 'none left'})",
            expected="room for weights, activations and the optimiser",
            hint="Lower --batch or --length, or raise --accumulate; the last checkpoint is whole.",
        ) from error


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
