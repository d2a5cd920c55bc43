"""RMI rates of a torch model that lies in memory, as training needs them again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from harness.rates.cka import F64, gram, linear_cka
from harness.rates.lp import layer_rates
from harness.rates.rmi import rmi_importance


def block_grams(blocks: Sequence[nn.Module], run: Callable[[], object]) -> list[F64]:
    """Gram matrices `[n, n]` of the inputs of `blocks` while `run` feeds n sequences at once.

    Args:
        blocks: decoder blocks, called with their hidden states `[n, length, hidden]` first.
        run: one forward pass of all sequences, in one batch.
    """
    found: dict[int, F64] = {}

    def hook(index: int) -> Callable[..., None]:
        def take(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = inputs[0] if inputs else named["hidden_states"]
            found[index] = gram(hidden.detach().float().cpu().numpy())

        return take

    with ExitStack() as stack, torch.no_grad():
        for index, block in enumerate(blocks):
            handle = block.register_forward_pre_hook(hook(index), with_kwargs=True)
            stack.callback(handle.remove)
        run()
    return [found[index] for index in range(len(blocks))]


def rmi_rates(
    blocks: Sequence[nn.Module],
    run: Callable[[], object],
    target: float,
    delta: float | None = None,
    *,
    beta: float = 1.0,
    sizes: Sequence[int] | None = None,
) -> tuple[F64, F64]:
    """`(rates, importance)`, each `[L]`, of the blocks that `run` passes its sequences through.

    Raises:
        InputRefused: `data-invalid` for a single sequence.
        VerificationFailed: `values-not-finite`, with the block named.
    """
    importance = rmi_importance(linear_cka(block_grams(blocks, run)), beta)
    return layer_rates(importance, target, delta, sizes), importance
