"""Biases of a LoRA: the bias of B (`lora_bias`), and whether promised biases are there (`bias`).

Meaning: peft/tuners/lora/layer.py (`Linear.merge`) and peft/utils/save_and_load.py of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from exporter.adapters.base import Replacement
from exporter.adapters.factors import Factors
from exporter.adapters.lora_config import LoraConfig
from exporter.adapters.peft_config import PeftConfig
from exporter.adapters.tensors import TensorFile, largest_magnitude
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused

LORA_BIAS = "lora_bias"


def bias_additions(
    factors: Mapping[str, Factors],
    scales: Mapping[str, float],
    config: LoraConfig,
    spec: ModelSpec,
    tensors: TensorFile,
) -> tuple[Replacement, ...]:
    """`scale * bias` of each B, added to the linear's own bias (`lora_bias`).

    Raises:
        InputRefused: `adapter-module` where the linear has no bias, `adapter-tensor-missing`,
            `adapter-tensor-unused`, `adapter-shape`, `value-not-finite`.
    """
    added: list[Replacement] = []
    for module, pair in factors.items():
        if pair.bias is None and config.lora_bias:
            raise InputRefused(
                "adapter-tensor-missing",
                "lora_bias is set, and lora_B.bias is not there",
                file=tensors.label,
                tensor=module,
            )
        if pair.bias is not None:
            added.append(_addition(pair.bias, module, scales[module], config, spec, tensors))
    return tuple(added)


def _addition(
    bias: str, module: str, scale: float, config: LoraConfig, spec: ModelSpec, tensors: TensorFile
) -> Replacement:
    if not config.lora_bias:
        raise InputRefused(
            "adapter-tensor-unused",
            "a bias of B, though lora_bias is not set",
            file=tensors.label,
            tensor=bias,
        )
    want = spec.tensors().get(f"{module}.bias")
    if want is None:
        raise InputRefused(
            "adapter-module",
            "the base's linear has no bias that lora_bias could be added to",
            expected="a linear with a bias",
            file=tensors.label,
            tensor=bias,
        )
    if tensors.entries[bias].shape != want:
        raise InputRefused(
            "adapter-shape",
            f"shape {list(tensors.entries[bias].shape)}",
            expected=f"{list(want)}",
            file=tensors.label,
            tensor=bias,
        )
    largest_magnitude(tensors, bias)
    rows = tensors.rows(bias)
    return Replacement(
        f"{module}.bias",
        want,
        lambda r0, r1: rows(r0, r1) * np.float32(scale),
        "add",
        LORA_BIAS,
    )


def check_biases(
    items: Iterable[Replacement],
    modules: Iterable[str],
    config: PeftConfig,
    spec: ModelSpec,
    file: str,
) -> None:
    """Every bias that the config's `bias` promises is there.

    Raises:
        InputRefused: `adapter-tensor-missing`.
    """
    if config.bias == "none":
        return
    have = {r.tensor for r in items}
    promised = [t for t in spec.tensors() if t.endswith(".bias")]
    if config.bias == "lora_only":
        adapted = {f"{m}.bias" for m in modules}
        promised = [t for t in promised if t in adapted]
    missing = [t for t in promised if t not in have]
    if missing:
        raise InputRefused(
            "adapter-tensor-missing",
            f"bias = {config.bias!r}, and {len(missing)} of {len(promised)} biases are not there",
            file=file,
            tensor=missing[0],
        )
