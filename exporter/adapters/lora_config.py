"""adapter_config.json of a LoRA: its fields, and how rank, scale and targets follow from them.

Format and meaning: peft/tuners/lora/config.py and layer.py (`update_layer`) of PEFT 0.21.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from exporter.adapters.options import COMMON_HARMLESS, OptionTable, check_options
from exporter.adapters.peft_files import validated
from exporter.adapters.ranks import RankedConfig, check_rank
from exporter.errors import InputRefused

_BASE_CHANGED = "its initialisation changed the base weights, which the adapter alone cannot tell"


class LoraConfig(RankedConfig):
    """The fields that decide what a LoRA adds; defaults are PEFT's."""

    lora_alpha: int | float = 8
    use_rslora: bool = False
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str | None = True
    use_dora: bool = False
    sparse_adapter: bool = False  # of SQFT's patched PEFT (SparsePEFT)
    target_parameters: list[str] = Field(default_factory=list)
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None

    @field_validator("target_parameters", mode="before")
    @classmethod
    def _null_is_no_name(cls, value: Any) -> Any:
        return [] if value is None else value

    def alpha(self, module: str, file: str) -> float:
        """Alpha of one module."""
        return self.alpha_of(module, self.lora_alpha, file)

    def scale(self, module: str, file: str) -> float:
        """`alpha / r`, or `alpha / sqrt(r)` with rsLoRA (Kalajdzievski 2023, eq. 4)."""
        rank = self.rank(module, file)
        return self.alpha(module, file) / (math.sqrt(rank) if self.use_rslora else rank)


OPTIONS = OptionTable(
    read=frozenset(LoraConfig.model_fields),
    harmless=COMMON_HARMLESS
    | {
        "corda_config",  # of initialisations; init_lora_weights itself decides below
        "eva_config",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",  # a module name, without effect unless megatron_config is set
        "qalora_group_size",  # without effect unless use_qalora is set
        "runtime_config",
    },
    refused={
        "use_qalora": "QALoRA pools the inputs of A",
        "use_bdlora": "BD-LoRA's factors are block-diagonal",
        "layer_replication": "it repeats layers of the base",
        "alora_invocation_tokens": "aLoRA is active on some tokens only, so nothing can be merged",
        "arrow_config": "Arrow routes between adapters by the input, so nothing can be merged",
        "kasa_config": "KaSA changes the base weights and adds a diagonal",
        "monteclora_config": "MonteCLoRA samples around its factors",
        "velora_config": "VeLoRA keeps further tensors in the file",
        "megatron_config": "Megatron shards the linears",
    },
)

# Initialisations that leave the base as it was, so that the factors alone are the delta.
_KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def parse_lora_config(raw: Mapping[str, Any], file: str) -> LoraConfig:
    """The config of a LoRA folder, every key accounted for.

    Raises:
        InputRefused: `adapter-option`, `adapter-invalid`, `limit-exceeded`.
    """
    check_options(raw, OPTIONS, file)
    config = validated(LoraConfig, raw, file)
    initial = config.init_lora_weights
    if (initial.lower() if isinstance(initial, str) else initial) not in _KEEPS_BASE:
        raise InputRefused(
            "adapter-option",
            f"init_lora_weights = {initial!r}: {_BASE_CHANGED}",
            expected="true, false, gaussian, eva, orthogonal or mica",
            file=file,
            hint="Save it again with PEFT's path_initial_model_for_weight_conversion.",
        )
    _check_together(config, file)
    ranks = (config.r, *config.rank_pattern.values())
    check_rank(min(ranks), file)
    check_rank(max(ranks), file)
    return config


def parse_plain_lora_config(raw: Mapping[str, Any], file: str) -> LoraConfig:
    """The config of a folder of another family that PEFT is to read as a plain LoRA too.

    Raises:
        InputRefused: as `parse_lora_config`; `adapter-option` for a variant of LoRA.
    """
    config = parse_lora_config(raw, file)
    for key in ("use_dora", "sparse_adapter", "target_parameters", "trainable_token_indices"):
        if getattr(config, key):
            raise InputRefused(
                "adapter-option", f"{key} is set", expected="a plain LoRA", file=file
            )
    return config


def _check_together(config: LoraConfig, file: str) -> None:
    """Options that PEFT itself does not carry out together."""
    pairs = {
        "use_dora with target_parameters": config.use_dora and config.target_parameters,
        "lora_bias with target_parameters": config.lora_bias and config.target_parameters,
        "use_dora with lora_bias": config.use_dora and config.lora_bias,
        "use_dora with sparse_adapter": config.use_dora and config.sparse_adapter,
        "use_dora with init_lora_weights 'mica'": config.use_dora
        and config.init_lora_weights == "mica",
    }
    for pair, both in pairs.items():
        if both:
            raise InputRefused(
                "adapter-option",
                f"{pair}: PEFT trains no such adapter",
                expected="one of the two",
                file=file,
            )
