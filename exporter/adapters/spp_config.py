"""adapter_config.json of SPP: that of PEFT 0.2, on which the public code is built.

Source: Lucky-Lance/SPP, peft/src/peft/tuners/lora.py, `LoraConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from exporter.adapters.options import COMMON_HARMLESS, OptionTable, check_options
from exporter.adapters.peft_config import PeftConfig
from exporter.adapters.peft_files import validated

ROWS = 16  # of a; hard-coded in the public code, whatever `r` says


class SppConfig(PeftConfig):
    """The fields that decide what SPP adds."""

    r: int = Field(default=8, gt=0)
    lora_alpha: int | float

    @property
    def scale(self) -> float:
        """`lora_alpha / r`."""
        return self.lora_alpha / self.r


_OPTIONS = OptionTable(
    read=frozenset(SppConfig.model_fields),
    harmless=COMMON_HARMLESS | {"lora_dropout", "merge_weights", "init_lora_weights"},
    refused={
        "fan_in_fan_out": "it transposes the weight, which the public code does for no linear "
        "that has column factors",
        "enable_lora": "it makes the public code take another layer, one without column factors",
        "use_rslora": "SPP's scale is alpha / r",
        "use_dora": "SPP has no magnitude vector",
        "rank_pattern": "SPP's a has 16 rows in every module",
        "alpha_pattern": "SPP has one scale",
    },
)


def parse_spp_config(raw: Mapping[str, Any], file: str) -> SppConfig:
    """The config, every key accounted for.

    Raises:
        InputRefused: `adapter-option`, `adapter-invalid`.
    """
    check_options(raw, _OPTIONS, file)
    return validated(SppConfig, raw, file)
