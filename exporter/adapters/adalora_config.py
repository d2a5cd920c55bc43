"""adapter_config.json of an AdaLoRA: ranks, scale, and what it ignores of LoRA's fields.

Format and meaning: peft/tuners/adalora/config.py and layer.py of PEFT 0.21.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from exporter.adapters.options import COMMON_HARMLESS, OptionTable
from exporter.adapters.peft_config import PeftConfig

DIAGONAL = "lora_E"
_EPSILON = 1e-5  # added to the rank in peft's layer

# Fields that AdaLoRA inherits from LoRA and never looks at, and which say something else there.
IGNORED = ("use_rslora", "alpha_pattern", "lora_bias")

_NOT_HERE = (
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "eva_config",
    "kasa_config",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "monteclora_config",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)


class AdaLoraConfig(PeftConfig):
    """The fields that decide what an AdaLoRA adds; defaults are PEFT's."""

    init_r: int = 12
    lora_alpha: int | float = 8
    rank_pattern: dict[str, list[bool]] = Field(default_factory=dict)

    @field_validator("rank_pattern", mode="before")
    @classmethod
    def _null_is_empty_map(cls, value: Any) -> Any:
        return {} if value is None else value

    def rank(self, module: str) -> int:
        """Rows of A in the file: what the budget has left of `init_r`."""
        left = self.rank_pattern.get(f"{module}.{DIAGONAL}")
        return self.init_r if left is None else sum(left)

    def scale(self, module: str) -> float:
        """`alpha / (init_r + 1e-5)`; PEFT divides by the rank before pruning."""
        alpha = self.lora_alpha if self.lora_alpha > 0 else self.rank(module)
        return alpha / (self.init_r + _EPSILON)


OPTIONS = OptionTable(
    read=frozenset(AdaLoraConfig.model_fields),
    harmless=COMMON_HARMLESS
    | set(IGNORED)
    | {
        "beta1",
        "beta2",
        "deltaT",
        "fan_in_fan_out",  # the layout follows from the base
        "init_lora_weights",  # AdaLoRA knows its own initialisation only
        "lora_dropout",
        "megatron_core",
        "orth_reg_weight",
        "qalora_group_size",
        "r",  # init_r counts
        "runtime_config",
        "target_r",
        "tfinal",
        "tinit",
        "total_step",
    },
    refused=dict.fromkeys(_NOT_HERE, "AdaLoRA has no such variant in PEFT")
    | {
        "layer_replication": "it repeats layers of the base",
        "target_parameters": "it adapts fused expert parameters, not linears",
        "trainable_token_indices": "it replaces single rows of the embedding",
    },
)
