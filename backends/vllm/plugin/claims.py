"""Which checkpoints are ours: called for every quantised checkpoint that vLLM loads.

An exception here would keep vLLM from loading models that are none of our business, so anything
that does not look exactly like ours or like a legacy checkpoint is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from backends.vllm.plugin import METHOD

LEGACY_METHOD = "compressed-tensors"
LEGACY_FORMATS = ("sparse-24-bitmask", "sparse-bitmask")


def claims(quantisation: object, asked: object = None) -> bool:
    """Whether the plugin takes a checkpoint.

    Args:
        quantisation: `quantization_config` of its config.json, whatever that is.
        asked: the method that the user asked vLLM for, or None.
    """
    if asked not in (None, METHOD, LEGACY_METHOD):
        return False
    if not isinstance(quantisation, Mapping):
        return False
    fields = cast(Mapping[str, Any], quantisation)
    if fields.get("quant_method") == METHOD:
        return asked != LEGACY_METHOD
    return is_legacy(fields)


def is_legacy(fields: Mapping[str, Any]) -> bool:
    """Whether compressed-tensors 0.14 or older stored it sparse and not quantised."""
    if fields.get("quant_method", LEGACY_METHOD) != LEGACY_METHOD or fields.get("config_groups"):
        return False
    sparsity: Any = fields.get("sparsity_config")
    if not isinstance(sparsity, Mapping):
        return False
    return cast(Mapping[str, Any], sparsity).get("format") in LEGACY_FORMATS
