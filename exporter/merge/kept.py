"""Kept positions of the base's linears, one mask held at a time."""

from __future__ import annotations

from collections.abc import Mapping

from exporter.adapters.base import Adapter
from exporter.arch.model_spec import Linear
from exporter.merge.agree import check_trained_under
from exporter.model import CheckedModel
from exporter.sparsity.mask import Bools, Mask
from exporter.sparsity.pattern import Pattern


class KeptMasks:
    """Masks of a checked model by module; None where the linear counts as dense."""

    def __init__(self, checked: CheckedModel) -> None:
        self._checked = checked
        self._linears: Mapping[str, Linear] = {li.module: li for li in checked.spec.linears()}
        self._held: tuple[str, Mask] | None = None

    def is_linear(self, module: str) -> bool:
        """Whether the module is one of the layers' linears (the head is not)."""
        return module in self._linears

    def is_dense(self, module: str) -> bool:
        """Whether the module has no zeros to keep: a dense linear, or the head."""
        return not self.is_linear(module) or self._checked.patterns[module].pattern.kind == "dense"

    def pattern(self, module: str) -> Pattern:
        """How the module's weight is sparse; the head counts as dense."""
        if module not in self._linears:
            return Pattern("dense", 1.0)
        return self._checked.patterns[module].pattern

    def density(self, module: str) -> float:
        """Share of kept weights of a linear; 1.0 for other modules."""
        return self.pattern(module).density

    def mask(self, module: str) -> Mask | None:
        """The mask that merging must respect."""
        return None if self.is_dense(module) else self._read(module)

    def rows(self, module: str, r0: int, r1: int) -> Bools:
        """Rows of the mask of a linear that is not dense."""
        return self._read(module).rows(r0, r1)

    def _read(self, module: str) -> Mask:
        held = self._held  # read once: another thread may set it
        if held is None or held[0] != module:
            held = self._held = None  # not two masks in memory
            held = (module, self._checked.masks.mask(self._linears[module]))
            self._held = held
        return held[1]

    def check_trained_under(self, adapter: Adapter) -> None:
        """The masks that an adapter was trained under are this model's, bit for bit.

        Raises:
            InputRefused: `mask-mismatch`, with counts; see `agree.check_trained_under`.
        """
        check_trained_under(self._checked, adapter)
