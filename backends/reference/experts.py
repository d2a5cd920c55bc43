"""Experts in the reference model: which tensors of a checkpoint make up each of its parameters.

Transformers 5 holds the linears of all experts of a layer in two 3-D parameters, and gives the
router another name than some checkpoints do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from exporter.arch.model_spec import FusedExperts, ModelSpec


@dataclass(frozen=True)
class Places:
    """Where the parameters of a model with experts lie; all others have their own names."""

    fused: Mapping[str, FusedExperts]
    renamed: Mapping[str, str]  # parameter -> tensor

    def tensors(self, parameter: str) -> Iterator[str]:
        """Names of the tensors that a parameter is made of."""
        fused = self.fused.get(parameter)
        if fused is None:
            yield self.renamed.get(parameter, parameter)
            return
        for linears in fused.linears:
            yield from (linear.weight for linear in linears)


def places(spec: ModelSpec) -> Places:
    """Those of an architecture; empty where it has no experts."""
    return Places(
        {fused.key: fused for fused in spec.fused_experts()},
        {f"{memory}.weight": f"{stored}.weight" for memory, stored in spec.routers().items()},
    )
