"""Bounds and expected speeds of a model that is not pruned yet, from ceilings and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from backends.packed.values import ValueType
from bench.parts import Fingerprint, Frozen
from bench.whatif.ceilings import Ceilings
from bench.whatif.reads import DENSE, PATTERNS, Step, kept_values, packed_bytes

_REFERENCE = ("bf16", DENSE)


class Estimate(Frozen):
    """One way to prune and store, as a decode step of `batch` sequences."""

    values: str
    pattern: str
    bytes: float = Field(description="read a step: linears, head, keys and values")
    operations: float = Field(description="multiplications and additions of a step")
    bound_seconds: float = Field(description="no kernel can be faster: the larger of the two below")
    bound_by: Literal["bytes", "operations"]
    expected_seconds: float = Field(description="by the measured rate of each kernel")
    bound_tokens_per_second: float
    expected_tokens_per_second: float
    against_own_dense: float = Field(description="expected speedup, values stored the same way")
    against_dense_bf16: float = Field(description="expected speedup")


class WhatIf(Frozen):
    """Everything of one `sparse-bench what-if`."""

    schema_version: Literal[1] = 1
    kind: Literal["what-if"] = "what-if"
    title: str
    batch: int
    context: int = Field(description="positions whose keys and values a step reads")
    linear_weights: float = Field(description="values of the prunable linears a token passes")
    dense_bytes: int = Field(description="head, embedding row, norms, routers: bfloat16")
    ceilings: Ceilings
    estimates: list[Estimate]
    notes: list[str]
    fingerprint: Fingerprint


def estimates(
    step: Step, ceilings: Ceilings, values: Sequence[ValueType], context: int
) -> list[Estimate]:
    """All value types by all patterns; the dense one of each type first."""
    raw = {(v.value, p): _one(step, ceilings, v, p, context) for v in values for p in PATTERNS}
    out: list[Estimate] = []
    for (kind, _), one in raw.items():
        reference = raw.get(_REFERENCE, raw[kind, DENSE])
        compared = {
            "against_own_dense": raw[kind, DENSE].expected_seconds / one.expected_seconds,
            "against_dense_bf16": reference.expected_seconds / one.expected_seconds,
        }
        out.append(one.model_copy(update=compared))
    return out


def _one(step: Step, ceilings: Ceilings, values: ValueType, pattern: str, context: int) -> Estimate:
    """Linears at their kernel's rate, all else at the plain reading rate.

    Operations: two for each kept weight and sequence; those of attention are left out, for they
    are small beside the rest at the contexts where decode is worth a question.
    """
    batch = ceilings.batch
    kept = sum(kept_values(s, pattern) * count for s, count in step.linears.items())
    packed = sum(packed_bytes(s, pattern, values) * count for s, count in step.linears.items())
    rest = step.dense + batch * context * step.kv
    operations = 2 * batch * (kept + step.dense_values)
    by_bytes = (packed + rest) / ceilings.read_bytes_per_second
    by_operations = operations / ceilings.operations_per_second[values.value]
    rest_rate = min(ceilings.read_bytes_per_second, _dense_rate(ceilings))
    expected = packed / ceilings.rate(values.value, pattern) + rest / rest_rate
    bound = max(by_bytes, by_operations)
    expected = max(expected, bound)
    return Estimate(
        values=values.value,
        pattern=pattern,
        bytes=packed + rest,
        operations=operations,
        bound_seconds=bound,
        bound_by="bytes" if by_bytes >= by_operations else "operations",
        expected_seconds=expected,
        bound_tokens_per_second=batch / bound,
        expected_tokens_per_second=batch / expected,
        against_own_dense=1.0,
        against_dense_bf16=1.0,
    )


def _dense_rate(ceilings: Ceilings) -> float:
    """The head is a dense bfloat16 product; without that kernel, the dense one that there is."""
    dense = {r.values: r.bytes_per_second for r in ceilings.rates if r.pattern == DENSE}
    return dense.get("bf16", max(dense.values()))
