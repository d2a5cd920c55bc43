"""Conversions of transformers' loader that gather the parts of packed linears and unpack them.

They stand before the model's own (`WeightConverter`, core_model_loading.py of transformers 5.19):
experts, which a model holds fused and a checkpoint one by one, are unpacked first and fused then.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from copy import deepcopy
from typing import Any, cast

import torch
from transformers.core_model_loading import ConversionOps, Transpose, WeightConverter
from transformers.pytorch_utils import Conv1D

from backends.packed.transformers.folder import Folder

_WEIGHT = ".weight"
Arrived = Future[torch.Tensor] | Callable[[], torch.Tensor]


def packed_conversions(folder: Folder, conversions: list[Any]) -> list[Any]:
    """`conversions` of the model, those that take weights taking packed ones too, and one for
    the linears that no conversion of the model takes."""
    taken = [
        PackedConverter(folder, c) if isinstance(c, WeightConverter) and _takes(c) else c
        for c in conversions
    ]
    return [*taken, PackedConverter(folder, None)]


def plain_conversions(conversions: list[Any]) -> list[Any]:
    """The model's own conversions, for saving it as the dense model that it is."""
    plain = [c.inner if isinstance(c, PackedConverter) else c for c in conversions]
    return [c for c in plain if c is not None]


def _takes(converter: WeightConverter) -> bool:
    # One that splits a weight has no place for parts: its packed linears end as unexpected.
    return bool(_weights(converter)) and len(converter.target_patterns) == 1


def _weights(converter: WeightConverter) -> list[str]:
    return [p for p in converter.source_patterns if p.endswith(_WEIGHT)]


class PackedConverter(WeightConverter):
    """Gathers the parts that make one parameter: of one linear, or of all experts of a layer.

    What fails here leaves `from_pretrained` as it is. transformers would collect it into a report
    of tracebacks.
    """

    __slots__ = ("arrived", "folder", "inner", "origin")

    def __init__(self, folder: Folder, inner: WeightConverter | None) -> None:
        """With `inner`, the model's conversion that gets dense weights in place of the parts."""
        self.folder = folder
        self.inner = inner
        self.origin: dict[str, str] = {}  # our pattern -> the inner one's
        self.arrived: list[tuple[str, str, Arrived]] = []
        for weight in _weights(inner) if inner else [_WEIGHT]:
            stem = weight.removesuffix(_WEIGHT)
            self.origin |= {rf"{stem}\.{part}$": weight for part in folder.packing.parts}
            if inner:
                self.origin[f"{weight}$"] = weight
        others = [p for p in inner.source_patterns if p not in _weights(inner)] if inner else []
        self.origin |= {pattern: pattern for pattern in others}
        targets = list(inner.target_patterns) if inner else [_WEIGHT]
        # Never run here; the class wants one.
        operations: list[ConversionOps] = inner.operations if inner else [Transpose()]
        super().__init__(list(self.origin), targets, operations, force_cpu=True)
        if inner:
            self.scope_prefix, self.base_model_prefix = inner.scope_prefix, inner.base_model_prefix

    def add_tensor(
        self, target_key: str, source_key: str, source_pattern: str, future: Any
    ) -> None:
        """Keep the name with the tensor: parts of experts are told apart by it alone."""
        self.layer_targets[target_key].add(source_key)
        self.arrived.append((source_key, source_pattern, future))

    def convert(
        self,
        layer_name: str,
        model: Any = None,
        config: Any = None,
        hf_quantizer: Any = None,
        loading_info: Any = None,
    ) -> Any:
        """The parameter `layer_name`, dense, in the type that the model has for it.

        Raises:
            InputRefused: `packed-invalid`, or what else `Packing.decode` raises.
        """
        del hf_quantizer, loading_info  # without the latter, errors are raised as they come
        module = model.get_submodule(layer_name.rpartition(".")[0])
        dtype = getattr(module, layer_name.rpartition(".")[2]).dtype
        gathered: dict[str, list[torch.Tensor]] = {}
        for pattern, parts in self._by_linear().items():
            for name in list(parts):
                dense = self.folder.dense(name, parts.pop(name), dtype)
                gathered.setdefault(pattern, []).append(dense)
        if self.inner is None:
            (weight,) = gathered[_WEIGHT]
            turned = isinstance(module, Conv1D)  # holds the transpose of what is packed
            return {layer_name: weight.t().contiguous() if turned else weight}
        inner = deepcopy(self.inner)
        inner.collected_tensors = cast(Any, gathered)
        return inner.convert(layer_name, model=model, config=config)

    def _by_linear(self) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
        """Pattern of the model's conversion -> module -> part -> tensor, in the order of names."""
        found: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
        for name, pattern, future in self.arrived:
            tensor = future.result() if isinstance(future, Future) else future()
            module, _, part = name.rpartition(".")
            found.setdefault(self.origin[pattern], {}).setdefault(module, {})[part] = tensor
        self.arrived = []
        return found
