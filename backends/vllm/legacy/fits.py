"""What stands against the old 2:4 layout, beyond groups of four that keep more than two."""

from __future__ import annotations

from collections.abc import Iterator

from backends.hf.rounded import dtypes
from exporter.arch.model_spec import Linear
from exporter.contract import Diagnostic, RuntimeWindow
from exporter.model import FusedModel
from exporter.store.dtypes import DType

WINDOW = RuntimeWindow(
    engine="vLLM",
    versions=">=0.7.2,<0.19",  # 0.7.1 has no decompression, 0.19.0 raises NotImplementedError
    python=">=3.9",
    hardware="NVIDIA GPU of compute capability 9.0 (Hopper), CUDA 12.2 or later",
)
# Rows of each shard (an assertion of `CompressedTensors24.create_weights`), and columns of a byte
# of the bitmask, which vLLM counts as `in // 8`.
_MULTIPLE = 8


def diagnose(model: FusedModel, dtype: str | None = None) -> Iterator[Diagnostic]:
    """Refusals of what vLLM 0.7.2 to 0.18.1 could not load in this layout, and a note.

    Args:
        model: every linear is 2:4; that is asked elsewhere (`backends.vllm.refuse`).
        dtype: as for `write`.

    From headers alone.
    """
    linears = model.spec.linears()
    if model.branches:
        text = "--on-merge separate: this layout has no place for a branch beside the weights"
        yield Diagnostic("refusal", text, next(iter(model.branches)))
    if model.spec.fused_experts():
        text = "no vLLM ever read experts in this layout; leave layout=compressed-tensors out"
        yield Diagnostic("refusal", text)
    if any(linear.transposed for linear in linears):
        text = "its linears are stored as [in, out], which this layout does not know"
        yield Diagnostic("refusal", text, linears[0].module)
    yield from _types(model, dtype)
    for linear in linears:
        yield from _size(linear)
    text = (
        f"for vLLM {WINDOW.versions} on a {WINDOW.hardware}; later ones refuse this layout unless "
        "sparse-export[vllm] is installed beside them"
    )
    yield Diagnostic("note", text)


def _types(model: FusedModel, dtype: str | None) -> Iterator[Diagnostic]:
    stored = dtypes(model, dtype)
    for linear in model.spec.linears():
        if stored[linear.weight] not in (DType.BF16, DType.F16):
            text = f"would be stored as {stored[linear.weight].value}; vLLM's 2:4 kernels take "
            yield Diagnostic("refusal", f"{text}bfloat16 and float16", linear.module)
            return


def _size(linear: Linear) -> Iterator[Diagnostic]:
    if linear.out_features % _MULTIPLE or linear.in_features % _MULTIPLE:
        size = f"{linear.out_features} x {linear.in_features}"
        text = f"is {size}: vLLM takes rows and columns in multiples of {_MULTIPLE} here"
        yield Diagnostic("refusal", text, linear.module)
