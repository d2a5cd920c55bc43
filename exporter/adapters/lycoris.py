"""What LoHa and LoKr share: rank, alpha and their patterns.

Meaning: peft/tuners/lycoris_utils.py of PEFT 0.21 (`LycorisConfig`); the scale is `alpha / r`.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from exporter.adapters.options import COMMON_HARMLESS
from exporter.adapters.patterns import pattern_key
from exporter.adapters.peft_config import PeftConfig
from exporter.adapters.tuner_checks import check_rank

# Fields of both configs that change training only.
HARMLESS = COMMON_HARMLESS | {
    "init_weights",
    "module_dropout",
    "rank_dropout",
    "use_effective_conv2d",  # of convolutions, which no decoder here has
}
# Fields of PEFT's LoRA config that neither has.
NOT_HERE = frozenset({"bias", "ensure_weight_tying"})


class LycorisConfig(PeftConfig):
    """The fields that decide rank and scale of each module; defaults are PEFT's."""

    r: int = 8
    alpha: int | float = 8
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, int | float] = Field(default_factory=dict)

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _null_is_empty_map(cls, value: Any) -> Any:
        return {} if value is None else value

    def rank(self, module: str, file: str) -> int:
        """Rank of one module."""
        key = pattern_key(self.rank_pattern, module, file)
        rank = self.r if key is None else self.rank_pattern[key]
        check_rank(rank, file)
        return rank

    def scale(self, module: str, file: str) -> float:
        """`alpha / r` of one module."""
        key = pattern_key(self.alpha_pattern, module, file)
        alpha = self.alpha if key is None else self.alpha_pattern[key]
        return alpha / self.rank(module, file)
