"""What LoHa and LoKr share: rank, alpha and their patterns.

Meaning: peft/tuners/lycoris_utils.py of PEFT 0.21 (`LycorisConfig`); the scale is `alpha / r`.
"""

from __future__ import annotations

from exporter.adapters.options import COMMON_HARMLESS
from exporter.adapters.ranks import RankedConfig, check_rank

# Fields of both configs that change training only.
HARMLESS = COMMON_HARMLESS | {
    "init_weights",
    "module_dropout",
    "rank_dropout",
    "use_effective_conv2d",  # of convolutions, which no decoder here has
}
# Fields of PEFT's LoRA config that neither has.
NOT_HERE = frozenset({"bias", "ensure_weight_tying"})


class LycorisConfig(RankedConfig):
    """The fields that decide rank and scale of each module; defaults are PEFT's."""

    alpha: int | float = 8

    def rank(self, module: str, file: str) -> int:
        """Rank of one module.

        Raises:
            InputRefused: `adapter-invalid`, `limit-exceeded`.
        """
        rank = super().rank(module, file)
        check_rank(rank, file)
        return rank

    def scale(self, module: str, file: str) -> float:
        """`alpha / r` of one module."""
        return self.alpha_of(module, self.alpha, file) / self.rank(module, file)
