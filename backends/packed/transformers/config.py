"""`quantization_config` of a packed folder, as transformers holds it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers.utils.quantization_config import QuantizationConfigMixin

from backends.packed.check import check
from backends.packed.spec import METHOD, PackedModel
from backends.packed.torch_unpack import dense_torch, to_numpy
from backends.packed.transformers.folder import Packing

_PARTS = ("mask", "values", "offsets", "starts", "scales")


class PackedConfig(QuantizationConfigMixin):
    """The parsed entry of config.json; `packed` has the linears by module.

    Raises:
        InputRefused: `packed-version`, `packed-invalid`.
    """

    dequantize = True  # transformers then forgets this config, and the model is a dense one

    def __init__(self, **raw: Any) -> None:
        self.quant_method: Any = METHOD
        self.packed = PackedModel.parse(raw)

    def packing(self, names: Collection[str]) -> Packing:
        """Parts by module, as the entries say; `names` of the stored tensors play no part."""
        del names
        linears = {m: tuple(spec.tensors(slots=0)) for m, spec in self.packed.layers.items()}
        return Packing(_PARTS, linears, self._dense)

    def _dense(
        self, module: str, parts: Mapping[str, torch.Tensor], file: str, dtype: torch.dtype
    ) -> torch.Tensor:
        spec = self.packed.layers[module]
        arrays = {part: to_numpy(tensor) for part, tensor in parts.items()}
        check(spec, arrays, module, file)
        return dense_torch(spec, arrays, dtype)

    def to_dict(self) -> dict[str, Any]:
        """As in config.json."""
        return self.packed.to_json()
