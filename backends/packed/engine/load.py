"""From a packed folder to a plan: linears in the kernels' memory, the embedding in its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from backends.packed.engine.choose import Chooser
from backends.packed.engine.fits import decoder_of
from backends.packed.kernels.decoder import ByRows, Layer, Plan
from backends.packed.kernels.linear import CpuLinear, Precision
from backends.packed.spec import PackedLinear, PackedModel, Parts, ValueType
from exporter.arch.decoder import ROLES
from exporter.arch.rope import half_tables
from exporter.arch.spec import artefact_spec
from exporter.errors import InputRefused
from exporter.quantise.rounding import Rounded
from exporter.quantise.scales import GRIDS
from exporter.store.checkpoint import Checkpoint
from exporter.store.dtypes import F32, DType

__all__ = ["Head", "Settings", "load"]

Head = Literal["stored", "int8"]
_PARTS = ("mask", "values", "offsets", "starts", "scales")
_FLOATS = {DType.BF16: ValueType.BF16, DType.F16: ValueType.FP16, DType.F32: ValueType.FP32}
_BLOCK_BYTES = 4 << 20  # of float32 rows of a head that is quantised


@dataclass(frozen=True)
class Settings:
    """How an artefact is run; see the fields of the target."""

    head: Head = "stored"
    activations: Precision = "fp32"
    context: int = 8192
    slots: int = 16


def load(folder: Path, settings: Settings, chooser: Chooser) -> Plan:
    """Read `folder`; memory is that of the linears, and of one of them while it is copied.

    Raises:
        InputRefused: every fault of the folder: `packed-invalid`, `packed-version`,
            `tensor-missing`, `arch-unsupported`, `target-refused`, ...
        EngineUnfit: `engine-missing`, `engine-unfit` of the kernels.
    """
    return _Loader(folder, settings, chooser).plan()


class _Loader:
    def __init__(self, folder: Path, settings: Settings, chooser: Chooser) -> None:
        self._opened = Checkpoint.open(folder)
        self._spec = decoder_of(artefact_spec(self._opened.config))
        packed = PackedModel.parse(self._opened.config.get("quantization_config"))
        self._packed = packed.layers
        self._settings, self._chooser = settings, chooser
        self._check_names()

    def plan(self) -> Plan:
        spec = self._spec
        length = min(spec.full_context, self._settings.context)
        return Plan(
            spec=spec,
            layers=[self._layer(i) for i in range(spec.layers)],
            embedding=cast("NDArray[Any]", self._opened.view(spec.embedding)),
            final_norm=self._opened.rows(spec.final_norm),
            head=self._head(),
            tables=half_tables(spec, length),
            slots=self._settings.slots,
        )

    def _check_names(self) -> None:
        """Every tensor of the spec is there in its shape; linears are packed."""
        linears = {each.weight: each for each in self._spec.linears()}
        for name, shape in self._spec.tensors().items():
            if name in linears:
                packed = self._packed.get(linears[name].module)
                found = None if packed is None else packed.shape
            else:
                entry = self._opened.entries.get(name)
                found = None if entry is None or entry.dtype not in _FLOATS else entry.shape
            if found != shape:
                what = "a packed linear" if name in linears else "a float tensor"
                raise InputRefused(
                    "tensor-missing",
                    "it is not stored" if found is None else f"its shape is {list(found)}",
                    expected=f"{what} {list(shape)}",
                    tensor=name,
                )

    def _layer(self, i: int) -> Layer:
        linears = {role: self._spec.linear(i, role) for role in ROLES}
        return Layer(
            linears={role: self._linear(each.module) for role, each in linears.items()},
            biases={
                role: self._opened.rows(f"{each.module}.bias")
                for role, each in linears.items()
                if each.bias
            },
            norms={name: self._opened.rows(tensor) for name, tensor in self._norms(i)},
        )

    def _norms(self, i: int) -> Iterator[tuple[str, str]]:
        for norm in ("input_norm", "post_norm", *(("q_norm", "k_norm") * self._spec.qk_norm)):
            yield norm, self._spec.name(norm, i)

    def _linear(self, module: str) -> ByRows:
        names = {part: f"{module}.{part}" for part in _PARTS}
        parts = {p: self._opened.view(n) for p, n in names.items() if n in self._opened.entries}
        try:
            return self._chooser.forms(self._packed[module], parts, self._build)
        except InputRefused as error:
            error.tensor = error.tensor or module
            raise

    def _build(self, spec: PackedLinear, parts: Parts) -> CpuLinear:
        return CpuLinear.build(spec, parts, precision=self._settings.activations)

    def _head(self) -> ByRows:
        name = self._spec.embedding if self._spec.tied else self._spec.head
        shape = (self._spec.vocab, self._spec.hidden)
        if self._settings.head == "int8":
            kind = ValueType.INT8
            parts = _quantised(lambda r0, r1: self._opened.rows(name, r0, r1), shape)
        else:
            kind = _FLOATS[self._opened.entries[name].dtype]
            parts = {"values": cast("NDArray[Any]", self._opened.view(name))}
        made = self._build(PackedLinear("dense", kind, shape, shape[0] * shape[1]), parts)
        return made, made, made


def _quantised(rows: Callable[[int, int], F32], shape: tuple[int, int]) -> Parts:
    """int8 codes and one scale a row, to nearest."""
    codes = np.empty(shape, GRIDS["int8"].dtype)
    scales = np.empty((shape[0], 1), DType.BF16.numpy)
    rounded = Rounded(rows, "int8", 0, "head")
    step = max(1, _BLOCK_BYTES // (4 * shape[1]))
    for r0 in range(0, shape[0], step):
        r1 = min(r0 + step, shape[0])
        codes[r0:r1], scales[r0:r1] = rounded(r0, r1)
    return {"values": codes, "scales": scales}
