"""A Llama-like decoder with experts in place of MLPs: Mixtral, Qwen3-MoE.

For checks, merging and `--target hf`. In a checkpoint every linear of every expert is a tensor of
its own; transformers 5 holds those of a layer in two 3-D parameters, and turns one form into the
other when it loads and saves (`conversion_mapping.py`, "mixtral" and "qwen2_moe", 5.19).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.arch.decoder import DecoderSpec
from exporter.arch.family import ExpertRule, Family
from exporter.arch.fields import FILE, Fields, invalid
from exporter.arch.model_spec import FusedExperts, Linear, weight_shapes
from exporter.errors import InputRefused
from exporter.limits import LIMITS

_COUNTS = ("num_local_experts", "num_experts")  # transformers reads and writes either


@dataclass(frozen=True)
class MoeSpec:
    """A `ModelSpec`: `body` but for the MLPs of `sparse` layers."""

    body: DecoderSpec
    rule: ExpertRule
    experts: int
    width: int  # of one expert
    sparse: frozenset[int]  # layers with experts

    @property
    def family(self) -> str:
        """The config's model_type."""
        return self.body.family

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self.body.layers

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.body.hidden

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.body.heads

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.body.kv_heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.body.head_dim

    @property
    def vocab(self) -> int:
        """Rows of the embedding."""
        return self.body.vocab

    @property
    def max_positions(self) -> int:
        """Longest sequence."""
        return self.body.max_positions

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.body.tied

    @property
    def embedding(self) -> str:
        """Tensor name of the token embedding `[vocab, hidden]`."""
        return self.body.embedding

    @property
    def head(self) -> str:
        """Tensor name of the head `[vocab, hidden]`."""
        return self.body.head

    @property
    def optional_prefix(self) -> str:
        """None is left out."""
        return ""

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json as parsed."""
        return self.body.config

    def linears(self) -> tuple[Linear, ...]:
        """Layer by layer: q, k, v, o, then gate, up, down of the MLP or of each expert in turn."""
        return tuple(linear for i in range(self.layers) for linear in self._layer(i))

    def fused_experts(self) -> tuple[FusedExperts, ...]:
        """Two a layer, in the order in which transformers registers them."""
        return tuple(fused for i in sorted(self.sparse) for fused in self._fused(i))

    def routers(self) -> Mapping[str, str]:
        """One a layer with experts."""
        rule = self.rule
        return {
            f"{rule.memory.format(i=i)}.gate": rule.router.format(i=i) for i in sorted(self.sparse)
        }

    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor that a checkpoint must have and its shape; a tied head is left out."""
        shapes: dict[str, tuple[int, ...]] = {self.embedding: (self.vocab, self.hidden)}
        for layer in range(self.layers):
            shapes |= self.body.norms(layer)
            if layer in self.sparse:
                shapes[f"{self.rule.router.format(i=layer)}.weight"] = (self.experts, self.hidden)
            shapes |= weight_shapes(self._layer(layer))
        return {**shapes, **self.body.last()}

    def _layer(self, layer: int) -> list[Linear]:
        found = [self.body.linear(layer, role) for role in ("q", "k", "v", "o")]
        if layer not in self.sparse:
            return [*found, *(self.body.linear(layer, role) for role in ("gate", "up", "down"))]
        each = (self._expert(layer, e) for e in range(self.experts))
        return [*found, *(linear for expert in each for linear in expert)]

    def _expert(self, layer: int, expert: int) -> tuple[Linear, Linear, Linear]:
        def linear(role: str, out: int, width: int) -> Linear:
            module = self.rule.linears[role].format(i=layer, e=expert)
            return Linear(module, layer, role, out, width, bias=False)

        hidden, inner = self.hidden, self.width
        return (
            linear("gate", inner, hidden),
            linear("up", inner, hidden),
            linear("down", hidden, inner),
        )

    def _fused(self, layer: int) -> tuple[FusedExperts, FusedExperts]:
        module = f"{self.rule.memory.format(i=layer)}.experts"
        each = [self._expert(layer, e) for e in range(self.experts)]
        return (
            FusedExperts(module, "gate_up_proj", tuple((gate, up) for gate, up, _ in each)),
            FusedExperts(module, "down_proj", tuple((down,) for _, _, down in each)),
        )


def load_moe(body: DecoderSpec, family: Family) -> MoeSpec:
    """Spec of a config whose family has experts, on top of what it shares with a Llama.

    Raises:
        InputRefused: `arch-unsupported`, `config-invalid`.
    """
    rule = family.experts
    if rule is None:
        raise InputRefused("arch-unsupported", f"{family.family} has no experts", file=FILE)
    fields = Fields(body.config, family.defaults)
    experts = _count(fields, body.layers)
    fields.integer("num_experts_per_tok", 1, experts)
    return MoeSpec(
        body=body,
        rule=rule,
        experts=experts,
        width=fields.integer(rule.width, 1, LIMITS.dim),
        sparse=_sparse(fields, body.layers),
    )


def _count(fields: Fields, layers: int) -> int:
    given = [key for key in _COUNTS if key in fields.values] or [_COUNTS[0]]
    most = max(1, LIMITS.tensors // (3 * layers))
    counts = [fields.integer(key, 1, most) for key in given]
    if len(set(counts)) > 1:
        raise invalid(given[1], counts[1], f"{given[0]}, which is {counts[0]}")
    return counts[0]


def _sparse(fields: Fields, layers: int) -> frozenset[int]:
    """Layers with experts; where the family has no such fields (Mixtral), all."""
    if "decoder_sparse_step" not in fields.defaults:
        return frozenset(range(layers))
    step = fields.integer("decoder_sparse_step", 1, LIMITS.layers)
    plain: Any = fields.raw("mlp_only_layers")
    plain = [] if plain is None else plain
    if not isinstance(plain, list) or any(type(x) is not int for x in plain):
        raise invalid("mlp_only_layers", plain, "a list of layer numbers")
    return frozenset(i for i in range(layers) if (i + 1) % step == 0 and i not in plain)
