"""Second moments of linears' inputs, summed while a block runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


class InputGrams:
    """`X^T X` of each module's inputs `X [tokens, in]`, float32; one sum for a shared input.

    q, k and v are given the same tensor by their block, and so are gate and up: it is the object
    that is compared, so nothing is assumed of a family.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._sums: dict[str, torch.Tensor] = {}  # by the first module that reads the input
        self._sharing: dict[str, list[str]] = {}
        self._last: tuple[str, torch.Tensor] | None = None

    @contextmanager
    def watching(self) -> Generator[None]:
        """Sum over everything that runs inside."""
        with ExitStack() as stack:
            for name, module in self._modules.items():
                stack.callback(module.register_forward_pre_hook(self._hook(name)).remove)
            yield
            self._last = None

    def results(self) -> Iterator[tuple[list[str], torch.Tensor]]:
        """`(modules, gram [in, in])`."""
        for owner, total in self._sums.items():
            yield [owner, *self._sharing[owner]], total

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            values: torch.Tensor = inputs[0]
            if self._last is not None and self._last[1] is values:
                owner = self._last[0]
                if name not in self._sharing[owner]:
                    self._sharing[owner].append(name)
                return
            self._last = (name, values)
            flat = values.flatten(0, -2)
            if name not in self._sums:
                width = flat.shape[1]
                self._sums[name] = torch.zeros(width, width)
                self._sharing[name] = []
            self._sums[name].addmm_(flat.t(), flat)

        return add
