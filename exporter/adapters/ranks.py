"""Ranks of an adapter's config: one for all modules, or by pattern, within bounds.

Meaning: `get_pattern_key` and `update_layer` of PEFT 0.21 (peft/utils/other.py, tuners).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from exporter.adapters.patterns import pattern_key
from exporter.adapters.peft_config import PeftConfig
from exporter.errors import InputRefused
from exporter.limits import LIMITS


class RankedConfig(PeftConfig):
    """Fields of the tuners that have a rank and an alpha by pattern; defaults are PEFT's."""

    r: int = 8
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, int | float] = Field(default_factory=dict)

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _null_is_empty_map(cls, value: Any) -> Any:
        return {} if value is None else value

    def rank(self, module: str, file: str) -> int:
        """Rank of one module."""
        key = pattern_key(self.rank_pattern, module, file)
        return self.r if key is None else self.rank_pattern[key]

    def alpha_of(self, module: str, otherwise: float, file: str) -> float:
        """Alpha of one module; `otherwise` where no pattern names it."""
        key = pattern_key(self.alpha_pattern, module, file)
        return float(otherwise if key is None else self.alpha_pattern[key])


def check_rank(rank: int, file: str, least: int = 1) -> None:
    """A rank of the config is within bounds.

    Raises:
        InputRefused: `adapter-invalid`, `limit-exceeded`.
    """
    if rank < least:
        raise InputRefused(
            "adapter-invalid", f"a rank of {rank}", expected=f"ranks of {least} or more", file=file
        )
    if rank > LIMITS.lora_rank:
        raise InputRefused(
            "limit-exceeded",
            f"a rank of {rank}",
            expected=f"at most {LIMITS.lora_rank}",
            file=file,
        )
