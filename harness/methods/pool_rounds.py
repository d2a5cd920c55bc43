"""SWGI's iterations: pool adapters, folded into the weights under the mask each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from exporter.model import CheckedModel
from exporter.store.dtypes import F32
from harness.methods.base import Adaptation, Base
from harness.methods.iterative import Start
from harness.methods.masking import Pruning
from harness.methods.pool import Pool, PoolSettings
from harness.methods.ranks import allocate


class PoolRounds:
    """SWGI as the iterative loop sees it."""

    def __init__(self, settings: PoolSettings, sparsity_given: bool) -> None:
        self.settings = settings if sparsity_given else replace(settings, iterations=1)
        self._pool = settings

    def sizes(self, checked: CheckedModel, errors: list[float], t: int) -> dict[str, int]:
        """Parameters of each module's G: a LoRA's of `rank`, moved to blocks of large error."""
        linears, layers = checked.spec.linears(), checked.spec.layers
        # In sixteenths of the rank, so that shares are fine; no block gets less than one.
        shares = [16] * layers if not errors else allocate(errors, 16 * layers, 1, 64)
        return {
            li.module: max(
                1, self._pool.rank * (li.out_features + li.in_features) * shares[li.layer] // 16
            )
            for li in linears
        }

    def merged(self, adaptation: Adaptation) -> dict[str, F32]:
        """`M . (W + D)`."""
        if not isinstance(adaptation, Pool):
            raise TypeError("no pooling adapter")
        return {f"{name}.weight": values for name, values in adaptation.merged().items()}

    def start(
        self, before: Adaptation | None, pruned: Mapping[str, F32], done: Pruning,
        sizes: Mapping[str, int], t: int, seed: int,
    ) -> Start:  # fmt: skip
        """The folded weights under the new mask, G at zero: the function stays, whatever g."""
        return Start(pruned, {}, exact=before is not None or bool(done.rewritten))

    def attach(
        self, base: Base, sizes: Mapping[str, int], tensors: Mapping[str, F32]
    ) -> Adaptation:
        """Pool adapters of the iteration's sizes."""
        return Pool(base, self._pool, sizes)
