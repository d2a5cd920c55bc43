"""Options of the decoder graph, and the names that its two interfaces use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exporter.arch.spec import DecoderSpec
from exporter.errors import UsageError

# opset 14 and IR 8 are the newest that DeepSparse 1.8.0 and SparseML's own exports agree on;
# every onnxruntime since 1.10 takes them.
OPSET = 14
IR_VERSION = 8

BATCH, TOKENS, SEQUENCE, PAST = "batch", "tokens", "sequence", "past"  # symbolic dimensions
DOMAIN, OPERATORS = "sparse_export", 1  # of our operator, as src/onnx_op.cpp and abi.h have them
PACKED_LINEAR = "PackedLinear"
SparseValues = Literal["fp32", "bf16"]
HIDDEN = "hidden."  # prefix of the residual-stream tensors that the probe shows


@dataclass(frozen=True)
class GraphOptions:
    """How the graph meets its user.

    `io="deepsparse"`: the interface of DeepSparse's text-generation pipeline. Inputs input_ids,
    attention_mask, positions, causal_mask, past_key_values.{i}.key/.value `[1, heads, past, D]`;
    the cache holds the repeated heads, the form that DeepSparse's internal cache compiles.
    Batch 1.

    `io="optimum"`: the interface of optimum's ORTModelForCausalLM. Inputs input_ids,
    attention_mask, position_ids, past_key_values.{i}.key/.value `[batch, kv_heads, past, D]`.

    Both: outputs logits `[batch, tokens, vocab]`, then present.{i}.key/.value.
    """

    io: Literal["deepsparse", "optimum"] = "deepsparse"
    sequence_length: int | None = None  # rows of the rotary tables; None: the model's full context
    packed: SparseValues | None = None  # values of sparse linears as PackedLinear; None: no such
    graph_file: str = "model.onnx"
    data_file: str = "model.data"

    def positions(self, spec: DecoderSpec) -> int:
        """Longest sequence the graph can run.

        Raises:
            UsageError: `target-option` beyond what the model was made for, or beyond its sliding
                window (the graph has full attention only).
        """
        if self.sequence_length is None:
            return spec.full_context
        if not 1 <= self.sequence_length <= spec.full_context:
            raise UsageError(
                "target-option",
                f"sequence_length is {self.sequence_length}",
                expected=f"1 to {spec.full_context} (positions and sliding window of the model)",
            )
        return self.sequence_length

    def cache_heads(self, spec: DecoderSpec) -> int:
        """Heads that the key/value cache holds."""
        return spec.heads if self.io == "deepsparse" else spec.kv_heads
