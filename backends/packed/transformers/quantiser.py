"""The quantiser that transformers asks about folders of `quant_method` "sparse-export"."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    rename_source_key,
)
from transformers.quantizers.base import HfQuantizer

from backends.packed.transformers.convert import packed_conversions, plain_conversions
from backends.packed.transformers.folder import (
    Folder,
    Packing,
    check_names,
    check_parts,
    read_names,
)
from exporter.errors import InputRefused, UsageError


class _Config(Protocol):
    """What the quantiser asks of its config; `PackedConfig` is one."""

    def packing(self, names: Collection[str]) -> Packing:
        """How the linears of a folder with these tensors are stored."""
        ...


class PackedQuantizer(HfQuantizer):
    """Unpacks at load; the model that comes out is dense and knows nothing of it.

    Names are checked before any weight is read, shapes after; `PackedConverter` checks the parts.
    """

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._config: _Config = quantization_config
        self._folder = Folder(quantization_config.packing(()), {})
        self._expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what this cannot do.

        Raises:
            UsageError: a model that is not packed; weights on disk.
        """
        if not self.pre_quantized:
            raise UsageError(
                "usage",
                "a config of packed weights was given for a model that is not packed",
                expected="a folder written by sparse-export",
            )
        devices = kwargs.get("device_map")
        if isinstance(devices, dict) and "disk" in devices.values():
            raise UsageError("usage", "device_map puts packed weights on disk", expected="no disk")

    # The base class leaves the types of these two unsaid, which reads as None.
    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A dense model is."""
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]
        """A dense model is; its zeros do not stay zeros."""
        return True

    def update_weight_conversions(self, weight_conversions: list[Any]) -> list[Any]:
        """The conversions of the model, preceded by unpacking."""
        return packed_conversions(self._folder, weight_conversions)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        names = read_names(kwargs.get("checkpoint_files") or [])
        self._folder = Folder(self._config.packing(names), names)
        check_parts(self._folder)
        state: dict[str, torch.Tensor] = model.state_dict()
        self._expected = {name: (tuple(t.shape), t.dtype) for name, t in state.items()}
        conversions = get_model_conversion_mapping(model, None, self)
        renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
        converters = [c for c in conversions if isinstance(c, WeightConverter)]

        def rename(name: str) -> str:
            prefix = model.base_model_prefix
            return rename_source_key(name, renamings, converters, prefix, state)[0]

        check_names(self._folder, model, rename)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Shapes, which transformers leaves to a quantiser; types of what it renamed."""
        del kwargs
        main = model.config.dtype
        wide = _in_float32(model, main)
        for name, tensor in model.state_dict().items():
            shape, dtype = self._expected.get(name, (tuple(tensor.shape), tensor.dtype))
            if tuple(tensor.shape) != shape:
                found = f"shape {list(tensor.shape)}"
                raise InputRefused("tensor-shape", found, expected=f"{list(shape)}", tensor=name)
            if tensor.is_floating_point() and tensor.dtype != dtype and not wide(name):
                # A plain tensor that goes by another name in the file is loaded as it is stored.
                _set(model, name, tensor.to(dtype))
        model._weight_conversions = plain_conversions(model._weight_conversions)
        return model


def _in_float32(model: Any, dtype: torch.dtype) -> Callable[[str], bool]:
    """Whether the model wants a parameter in float32 whatever type was asked for."""
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    pattern = build_glob_alternation(list(plan))[0] if plan else None

    def wanted(name: str) -> bool:
        return pattern is not None and pattern.search(name) is not None

    return wanted


def _set(model: Any, name: str, tensor: torch.Tensor) -> None:
    model.get_parameter(name).data = tensor
