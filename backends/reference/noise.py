"""How much of a model's logits float32 can settle at all: the same model, rounded otherwise.

Monte Carlo arithmetic (Parker, "Monte Carlo Arithmetic", UCLA CSD-970002, 1997, chapter 3): the
result of a computation is known to no more digits than it keeps when every rounding is disturbed
at random. Disturbed here is what each module with weights and each decoder layer gives: products
and residual sums, one unit in the last place at most.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exporter.verify.rows import TINY

RUNS = 8  # the largest of eight draws is below half the scale of a normal error once in 5,000
UNIT = 2.0**-23  # float32's unit in the last place of 1
_SEED = 20260101


def spread(net: Any, ids: torch.Tensor, layers: set[torch.nn.Module]) -> NDArray[np.float64]:
    """Largest distance of `RUNS` disturbed forwards from the plain one, of each row's peak.

    Args:
        net: a float32 causal language model in eval mode.
        ids: int64 `[1, T]`.
        layers: modules that are disturbed beside those that hold weights.

    Returns:
        float64 `[T]`; the same each time on one machine.
    """
    plain = _logits(net, ids)
    peak = np.maximum(np.abs(plain).max(axis=1), TINY)
    out = np.zeros(len(plain))
    draw = torch.Generator().manual_seed(_SEED)
    with _disturbed(net, layers, draw):
        for _ in range(RUNS):
            out = np.maximum(out, np.abs(_logits(net, ids) - plain).max(axis=1) / peak)
    return out


@contextmanager
def _disturbed(
    net: torch.nn.Module, layers: set[torch.nn.Module], draw: torch.Generator
) -> Generator[None, None, None]:
    hooks = [
        module.register_forward_hook(_noise(draw))
        for module in net.modules()
        if module in layers or next(module.parameters(recurse=False), None) is not None
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _noise(draw: torch.Generator) -> Callable[..., Any]:
    def one(values: Any) -> Any:
        if not isinstance(values, torch.Tensor) or not values.is_floating_point():
            return values
        u = torch.rand(values.shape, generator=draw, dtype=values.dtype).mul_(2.0).sub_(1.0)
        return values * u.mul_(UNIT).add_(1.0)

    def hook(_module: object, _inputs: object, output: Any) -> Any:
        return tuple(map(one, output)) if isinstance(output, tuple) else one(output)

    return hook


def _logits(net: Any, ids: torch.Tensor) -> NDArray[np.float64]:
    with torch.inference_mode():
        out = net(input_ids=ids, use_cache=False)
    return out.logits[0].double().numpy()
