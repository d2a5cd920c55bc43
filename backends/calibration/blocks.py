"""A fused decoder run block by block in float32: one block's weights in memory, never the model.

Transformers' own classes run; their decoder's forward says which mask and rotary angles each
block gets, what is added to the embedding, and what stands behind the last block, so no family
needs a line here. Blocks are reached by giving them another `forward` for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from backends.reference.build import empty_model, fill_parameter
from exporter.contract import Tokens
from exporter.errors import InputRefused
from exporter.memory import give_back
from exporter.model import FusedModel

TOKENS_AT_ONCE = 2048  # that run through a block, or the head, together
HEAD_TOKENS = 256  # their logits over a large vocabulary are the largest array of all


class BlockStream:
    """The decoder's blocks, and the hidden states of windows of text before the next one.

    Args:
        fused: the model; its tensors are read when a block is loaded.
        windows: token ids `[n, length]`.
        spill: folder for a file that holds the hidden states; None keeps them in memory.

    Raises:
        InputRefused: `config-invalid`, `arch-unsupported`, `tensor-*`.
    """

    def __init__(self, fused: FusedModel, windows: Tokens, spill: Path | None = None) -> None:
        if fused.spec.fused_experts():
            raise _no_experts(fused.spec.family)
        self._fused = fused
        self._model: Any = empty_model(fused, attention="sdpa").eval()
        self.blocks = _blocks(self._model, fused)
        self._prefix = _prefix(self._model, self.blocks)
        self._ids = torch.from_numpy(windows)
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.hidden = _states((*windows.shape, fused.spec.hidden), spill)  # float32
        with self._ends(head=False):
            self._embed()

    def load(self, index: int) -> nn.Module:
        """Block `index` with its weights, float32, by the names of the checkpoint."""
        block = self.blocks[index]
        for name, _ in list(block.named_parameters()):
            fill_parameter(self._model, f"{self._prefix[index]}.{name}", self._fused)
        return block.eval().requires_grad_(False)

    def prefix(self, index: int) -> str:
        """What the names of all modules in block `index` begin with."""
        return f"{self._prefix[index]}."

    def module(self, name: str) -> nn.Module:
        """The module with the full name `name`.

        Raises:
            InputRefused: `arch-unsupported` where transformers' class has none of that name.
        """
        try:
            return self._model.get_submodule(name)
        except AttributeError as error:
            raise InputRefused(
                "arch-unsupported",
                "transformers computes this linear without a module of its own",
                expected="a linear whose input can be observed",
                tensor=name,
                hint="Leave --calibration out.",
            ) from error

    def run(self, index: int, first: int, last: int, *, advance: bool) -> None:
        """Feed windows `[first:last]` to block `index`; with `advance` outputs replace inputs."""
        arguments, named = self._calls[index]
        step = max(1, TOKENS_AT_ONCE // self.hidden.shape[1])
        with torch.inference_mode():
            for i in range(first, last, step):
                part = slice(i, min(i + step, last))
                out = self.blocks[index](self.hidden[part], *arguments, **named)
                if advance:
                    self.hidden[part] = out[0] if isinstance(out, tuple) else out

    def drop(self, index: int) -> None:
        """Free the weights of block `index`."""
        self.blocks[index].to("meta")
        give_back()

    def loss(self, first: int, last: int) -> float:
        """Mean negative log-likelihood in nats of each next token of windows `[first:last]`.

        To be called behind the last block. Every token but a window's first is predicted.
        """
        length = self.hidden.shape[1]
        total = 0.0
        with self._ends(), torch.inference_mode():
            for window in range(first, last):
                for a in range(0, length - 1, HEAD_TOKENS):
                    b = min(a + HEAD_TOKENS, length - 1)
                    logits = self._logits(window, a, b)
                    want = self._ids[window, a + 1 : b + 1]
                    loss = nn.functional.cross_entropy(logits, want, reduction="none")
                    total += float(loss.double().sum())
        return total / ((last - first) * (length - 1))

    def loss_gradients(self) -> torch.Tensor:
        """Gradient of each window's mean loss by its hidden states, float32 `[n, length, hidden]`.

        To be called behind the last block. Every token but a window's first is predicted.
        """
        count, length, _ = self.hidden.shape
        out = torch.zeros(self.hidden.shape)
        with self._ends():
            for window in range(count):
                for a in range(0, length - 1, HEAD_TOKENS):
                    b = min(a + HEAD_TOKENS, length - 1)
                    part = self.hidden[window : window + 1, a:b].clone().requires_grad_()
                    want = self._ids[window, a + 1 : b + 1]
                    logits = self._of(part, window, a, b)
                    loss = nn.functional.cross_entropy(logits, want, reduction="sum")
                    (gradient,) = torch.autograd.grad(loss / (length - 1), part)
                    out[window, a:b] = gradient[0]
        return out

    def backward(self, index: int, hidden: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Back through block `index` for one window: the gradient of its input `[length, hidden]`.

        Gradients of the block's parameters that want one are added to their `grad`.

        Args:
            index: of a loaded block.
            hidden: input of the block, `[length, hidden]`.
            gradient: of its output, `[length, hidden]`.
        """
        arguments, named = self._calls[index]
        given = hidden[None].clone().requires_grad_()
        with torch.enable_grad():
            out = self.blocks[index](given, *arguments, **named)
            out = out[0] if isinstance(out, tuple) else out
            torch.autograd.backward(out, gradient[None])
        return given.grad[0] if given.grad is not None else torch.zeros_like(hidden)

    def _logits(self, window: int, a: int, b: int) -> torch.Tensor:
        """What the model makes of hidden states `[a:b]`: blocks hand them on, the ends are real."""
        return self._of(self.hidden[window : window + 1, a:b], window, a, b)

    def _of(self, hidden: torch.Tensor, window: int, a: int, b: int) -> torch.Tensor:
        with _forwards(self.blocks, lambda *_args, **_named: hidden):
            ids = self._ids[window : window + 1, a:b]
            return self._model(input_ids=ids, use_cache=False).logits[0]

    def _embed(self) -> None:
        first: list[torch.Tensor] = []

        def record(hidden: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
            if len(self._calls) < len(self.blocks):
                self._calls.append((arguments, named))
            if not first:
                first.append(hidden)
            return hidden

        decoder = self._model.base_model
        # Not inference mode: rotary angles recorded here may go through `backward`.
        with torch.no_grad(), _forwards(self.blocks, record):
            for i in range(len(self._ids)):
                decoder(input_ids=self._ids[i : i + 1], use_cache=False)
                self.hidden[i : i + 1] = first.pop()

    @contextmanager
    def _ends(self, *, head: bool = True) -> Generator[None]:
        """Everything outside the blocks, with its weights; the head where it is wanted."""
        inside = tuple(f"{prefix}." for prefix in self._prefix)
        last = self._fused.spec.head
        names = [n for n, _ in self._model.named_parameters() if not n.startswith(inside)]
        for name in names:
            if name != last or (head and not self._fused.tied):
                fill_parameter(self._model, name, self._fused)
        if self._fused.tied:
            self._model.get_output_embeddings().weight = self._model.get_input_embeddings().weight
        yield
        for name in {*names, last}:
            owner, _, leaf = name.rpartition(".")
            module = self._model.get_submodule(owner)
            setattr(module, leaf, nn.Parameter(getattr(module, leaf).to("meta")))


def _states(shape: tuple[int, ...], spill: Path | None) -> torch.Tensor:
    """Room for hidden states, float32; in a file of `spill`, whose pages the system may drop."""
    if spill is None:
        return torch.empty(shape)
    file = spill / "hidden.f32"
    return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))


def _no_experts(family: str) -> InputRefused:
    return InputRefused(
        "arch-unsupported",
        f"the experts of {family} are computed together, each from a few tokens",
        expected="a decoder whose linears all see every token",
        hint="Leave --calibration out.",
    )


@contextmanager
def _forwards(blocks: list[nn.Module], forward: Callable[..., Any]) -> Generator[None]:
    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _blocks(model: Any, fused: FusedModel) -> list[nn.Module]:
    """The decoder's layers: its only list of as many modules as the model has layers."""
    decoder = model.base_model
    found = [
        list(child)
        for child in decoder.children()
        if isinstance(child, nn.ModuleList) and len(child) == fused.spec.layers
    ]
    if len(found) != 1:
        raise InputRefused(
            "arch-unsupported",
            f"transformers' {type(decoder).__name__} has no plain list of its layers",
            expected="a decoder whose blocks can be run one by one",
            hint="Leave --calibration out.",
        )
    return found[0]


def _prefix(model: nn.Module, blocks: list[nn.Module]) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(block)] for block in blocks]
