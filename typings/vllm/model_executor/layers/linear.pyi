from typing import Any, TypeVar

import torch
from torch.nn import Module
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

_T = TypeVar("_T", bound=type)

class LinearBase(Module): ...
class ReplicatedLinear(LinearBase): ...

class UnquantizedLinearMethod(QuantizeMethodBase):
    def __init__(self) -> None: ...
    def create_weights(
        self,
        layer: Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None: ...
    def process_weights_after_loading(self, layer: Module) -> None: ...
    def apply(
        self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor: ...

def register_weight_loader_v2_supported_method(cls: _T) -> _T: ...
