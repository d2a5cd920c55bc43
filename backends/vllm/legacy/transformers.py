"""Folders of `sparse-24-bitmask` and `sparse-bitmask` in plain transformers.

transformers 5 knows the name `compressed-tensors`, but compressed-tensors since 0.15 reads neither
of the two formats. So that nothing is taken from that name, the quantiser has one of its own, and
`legacy_config` gives a model config that asks for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import AutoConfig
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from backends.packed.transformers.folder import Packing
from backends.packed.transformers.quantiser import PackedQuantizer
from backends.vllm.legacy.config import TWO_FOUR, UNSTRUCTURED
from backends.vllm.legacy.decode import decode_bitmask_torch

_METHOD = "sparse-export-bitmask"
_PARTS = {
    TWO_FOUR: ("compressed", "bitmask", "shape"),
    UNSTRUCTURED: ("compressed", "bitmask", "shape", "row_offsets"),
}


def legacy_format(config: Mapping[str, Any]) -> str | None:
    """The format of a config.json whose weights are sparse and not quantised; None for others."""
    raw: Any = config.get("quantization_config")
    if not isinstance(raw, dict) or raw.get("quant_method") != "compressed-tensors":
        return None
    sparsity: Any = raw.get("sparsity_config")
    found: Any = sparsity.get("format") if isinstance(sparsity, dict) else None
    return found if found in (TWO_FOUR, UNSTRUCTURED) and not raw.get("config_groups") else None


def legacy_config(folder: Any, form: str) -> Any:
    """The config object of `folder` for `from_pretrained(folder, config=...)`."""
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.quantization_config = {"quant_method": _METHOD, "form": form}
    return config


@register_quantization_config(_METHOD)
class BitmaskConfig(QuantizationConfigMixin):
    """`form` is the format's name."""

    dequantize = True

    def __init__(self, form: str, quant_method: str = _METHOD) -> None:
        self.quant_method: Any = quant_method
        self.form = form

    def packing(self, names: Collection[str]) -> Packing:
        """Linears are those that have a bitmask: which were ignored, the config tells by rules."""
        parts = _PARTS[self.form]
        found = [n.removesuffix(".bitmask") for n in names if n.endswith(".bitmask")]
        return Packing(_PARTS[UNSTRUCTURED], dict.fromkeys(found, parts), _dense)


@register_quantizer(_METHOD)
class BitmaskQuantizer(PackedQuantizer):
    """As for the packed layout."""


def _dense(
    module: str, parts: Mapping[str, torch.Tensor], file: str, dtype: torch.dtype
) -> torch.Tensor:
    return decode_bitmask_torch(**parts, module=module, file=file).to(dtype)
