"""`quantization_config` of a packed folder, as transformers holds it."""

from __future__ import annotations

from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from backends.packed.spec import METHOD, PackedModel


class PackedConfig(QuantizationConfigMixin):
    """The parsed entry of config.json; `packed` has the linears by module.

    Raises:
        InputRefused: `packed-version`, `packed-invalid`.
    """

    dequantize = True  # transformers then forgets this config, and the model is a dense one

    def __init__(self, **raw: Any) -> None:
        self.quant_method: Any = METHOD
        self.packed = PackedModel.parse(raw)

    def to_dict(self) -> dict[str, Any]:
        """As in config.json."""
        return self.packed.to_json()
