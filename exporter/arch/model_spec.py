"""What every part but a graph needs of an architecture: `ModelSpec`, and its linears."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Linear:
    """One prunable linear layer, `y = x W^T (+ b)`, `W [out, in]`.

    Masks, patterns, deltas and fused rows all are of this `W`, however the file stores it.
    """

    module: str  # "model.layers.0.self_attn.q_proj"
    layer: int
    role: str  # "q", "gate", ...: for tables
    out_features: int
    in_features: int
    bias: bool
    transposed: bool = False  # stored as `[in, out]` (transformers' Conv1D)

    @property
    def weight(self) -> str:
        """Tensor name of the weight."""
        return f"{self.module}.weight"


@dataclass(frozen=True)
class FusedExperts:
    """Linears of all experts of a layer, as transformers 5 holds them: one 3-D parameter.

    It is `[experts, out, in]`, and the rows of an expert are those of its linears in turn. In a
    checkpoint each linear is a tensor of its own.
    """

    module: str  # "model.layers.0.mlp.experts", in memory
    name: str  # "gate_up_proj"
    linears: tuple[tuple[Linear, ...], ...]  # by expert

    @property
    def key(self) -> str:
        """Name of the parameter in memory."""
        return f"{self.module}.{self.name}"

    @property
    def out_features(self) -> int:
        """Rows of one expert."""
        return sum(linear.out_features for linear in self.linears[0])

    @property
    def in_features(self) -> int:
        """Columns of one expert."""
        return self.linears[0][0].in_features


class ModelSpec(Protocol):
    """An architecture as checks, adapters and merging see it."""

    @property
    def family(self) -> str:
        """The config's model_type."""
        ...

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        ...

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        ...

    @property
    def heads(self) -> int:
        """Query heads."""
        ...

    @property
    def kv_heads(self) -> int:
        """Key and value heads; `heads` where they are not shared."""
        ...

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        ...

    @property
    def vocab(self) -> int:
        """Rows of the embedding."""
        ...

    @property
    def max_positions(self) -> int:
        """Longest sequence."""
        ...

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        ...

    @property
    def embedding(self) -> str:
        """Tensor name of the token embedding `[vocab, hidden]`."""
        ...

    @property
    def head(self) -> str:
        """Tensor name of the head `[vocab, hidden]`."""
        ...

    @property
    def optional_prefix(self) -> str:
        """Start of names that checkpoints of the body alone leave out; "" where none does."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json as parsed."""
        ...

    def linears(self) -> tuple[Linear, ...]:
        """All prunable linears, layer by layer."""
        ...

    def fused_experts(self) -> tuple[FusedExperts, ...]:
        """The parameters that hold linears of experts, those of a module as it registers them."""
        ...

    def routers(self) -> Mapping[str, str]:
        """Modules that choose experts, dense `[experts, hidden]`: in memory -> in a checkpoint."""
        ...

    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor the model must have, a linear's as `[out, in]`; a tied head is left out."""
        ...


def weight_shapes(linears: Iterable[Linear]) -> dict[str, tuple[int, ...]]:
    """Weights and biases of linears, `[out, in]` and `[out]`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for linear in linears:
        shapes[linear.weight] = (linear.out_features, linear.in_features)
        if linear.bias:
            shapes[f"{linear.module}.bias"] = (linear.out_features,)
    return shapes


def stored_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """`spec.tensors()` with the shapes that a checkpoint stores."""
    transposed = {linear.weight for linear in spec.linears() if linear.transposed}
    return {n: s[::-1] if n in transposed else s for n, s in spec.tensors().items()}
