"""Rule: every tensor of the model is a plain float; quantised checkpoints are named as such."""

from __future__ import annotations

from collections.abc import Mapping

from exporter.arch.model_spec import ModelSpec
from exporter.check.names import leftover
from exporter.errors import InputRefused
from exporter.model import Note
from exporter.store.checkpoint import Checkpoint, TensorEntry
from exporter.store.dtypes import DType

# Companions of quantised weights: compressed-tensors, GPTQ/AWQ, bitsandbytes, fbgemm/torchao.
_COMPANIONS = (
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_zero_point",
    ".weight_shape",
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".absmax",
    ".quant_map",
    ".SCB",
)
_CONFIG_NAMES: Mapping[str, DType] = {
    "float64": DType.F64,
    "float32": DType.F32,
    "float16": DType.F16,
    "bfloat16": DType.BF16,
}
_QUANTISED = (DType.F8_E4M3, DType.F8_E5M2, DType.I8, DType.U8, DType.I32, DType.U32)


def check_dtypes(checkpoint: Checkpoint) -> None:
    """Every weight is float64, float32, float16 or bfloat16.

    Raises:
        InputRefused: `model-quantised` for a quantised weight or one of its companions,
            `dtype-unsupported` for another type in place of a weight.
    """
    for entry in checkpoint.entries.values():
        if entry.name.endswith(_COMPANIONS):
            raise _quantised(entry, "a quantiser's tensor")
        weight = entry.name.endswith((".weight", ".bias")) and not leftover(entry.name)
        if entry.dtype.is_weight or not weight:
            continue
        if entry.dtype in _QUANTISED:
            raise _quantised(entry, f"stored as {entry.dtype.value}")
        raise InputRefused(
            "dtype-unsupported",
            f"stored as {entry.dtype.value}",
            expected="F64, F32, F16 or BF16",
            file=entry.file,
            tensor=entry.name,
        )


def dtype_notes(checkpoint: Checkpoint, spec: ModelSpec) -> list[Note]:
    """A note where config.json names another type than the weights have; the weights count."""
    named = checkpoint.config.get("dtype", checkpoint.config.get("torch_dtype"))
    other = [
        name
        for name in spec.tensors()
        if isinstance(named, str)
        and named in _CONFIG_NAMES
        and checkpoint.entries[name].dtype is not _CONFIG_NAMES[named]
    ]
    return [Note(other[0], "dtype-not-of-config", len(other))] if other else []


def _quantised(entry: TensorEntry, found: str) -> InputRefused:
    return InputRefused("model-quantised", found, file=entry.file, tensor=entry.name)
