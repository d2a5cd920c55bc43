"""Low-rank branches that were kept apart (policy `separate`): stored once each, bit for bit."""

from __future__ import annotations

import numpy as np

from exporter.contract import StoredTensor
from exporter.model import FusedModel
from exporter.store.dtypes import F32
from exporter.verify.diagnose import same_bits


class Branches:
    """The two factors of every branch, ticked off as they are found.

    A target names them below their module, as it likes; which factor a tensor is follows from
    its values: A `[r, in]`, B `[out, r]`, or `scale * B` where the target folds the scale in.
    """

    def __init__(self, model: FusedModel) -> None:
        self._model = model
        self._left = [(module, side) for module in model.branches for side in ("A", "B")]

    def claims(self, name: str) -> bool:
        """Whether a stored tensor of this name belongs to a branch."""
        return self._module(name) is not None

    def check(self, stored: StoredTensor) -> list[str]:
        """Failures of a tensor that belongs to a branch; ticks its factor off."""
        module = self._module(stored.name)
        values = stored.rows(0, stored.shape[0])
        for side in ("A", "B"):
            key = (module or "", side)
            if key in self._left and any(_equal(values, f) for f in self._forms(*key)):
                self._left.remove(key)
                return []
        return [f"{stored.name} is no factor of the branch at {module}, or is stored twice"]

    def missing(self) -> list[str]:
        """Failures: factors that no tensor held."""
        return [f"factor {side} of the branch at {m} is missing" for m, side in self._left]

    def _module(self, name: str) -> str | None:
        return next((m for m in self._model.branches if name.startswith(f"{m}.")), None)

    def _forms(self, module: str, side: str) -> tuple[F32, ...]:
        branch = self._model.branches[module]
        if side == "A":
            return (branch.a,)
        return (branch.b, np.float32(branch.scale) * branch.b)


def _equal(got: F32, want: F32) -> bool:
    return got.shape == want.shape and same_bits(got, want)
