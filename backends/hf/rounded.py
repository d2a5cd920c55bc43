"""The type in which each tensor is stored, and the fused model with the values of that type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from exporter.model import FusedModel, RowReader
from exporter.store.dtypes import F32, DType, round_float32, to_float32

TORCH_NAMES: Mapping[DType, str] = {
    DType.F32: "float32",
    DType.BF16: "bfloat16",
    DType.F16: "float16",
}
_BY_NAME = {name: dtype for dtype, name in TORCH_NAMES.items()}


def dtypes(model: FusedModel, asked: str | None) -> dict[str, DType]:
    """Tensor -> stored type: `asked`, else as in the checkpoint (float64 becomes float32, in
    which everything is computed; a head that comes off its tie has the embedding's)."""
    if asked is not None:
        return dict.fromkeys(model.tensors, _BY_NAME[asked])
    entries, embedding = model.checked.checkpoint.entries, model.spec.embedding
    found = {n: entries.get(n, entries[embedding]).dtype for n in model.tensors}
    return {n: DType.F32 if d is DType.F64 else d for n, d in found.items()}


def main_dtype(model: FusedModel, asked: str | None) -> str:
    """Torch's name of the type that holds most elements: what config.json names."""
    elements: Counter[DType] = Counter()
    for name, dtype in dtypes(model, asked).items():
        elements[dtype] += prod(model.tensors[name].shape)
    return TORCH_NAMES[elements.most_common(1)[0][0]]


def as_written(model: FusedModel, asked: str | None) -> FusedModel:
    """The model with every value rounded once to its stored type, as float32."""
    return as_stored(model, dtypes(model, asked))


def as_stored(model: FusedModel, stored: Mapping[str, DType]) -> FusedModel:
    """The same for types given tensor by tensor."""
    return replace(
        model,
        tensors={
            name: replace(tensor, rows=_Rounded(name, tensor.rows, stored[name]))
            for name, tensor in model.tensors.items()
        },
    )


@dataclass(frozen=True)
class _Rounded:
    name: str
    exact: RowReader
    dtype: DType

    def __call__(self, r0: int, r1: int) -> F32:
        return to_float32(round_float32(self.exact(r0, r1), self.dtype, tensor=self.name))
