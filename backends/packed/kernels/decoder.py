"""A decode step through ctypes: the structures of src/decode.h, and one call a step."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.packed.kernels.library import Library
from backends.packed.kernels.linear import CpuLinear
from exporter.arch.decoder import ROLES, DecoderSpec
from exporter.store.dtypes import F32, DType

__all__ = ["CLASSES", "ROWS", "ByRows", "Decoder", "Layer", "Plan", "Rows"]

ROWS = 128
"""Most rows of one step, `SE_ROWS`."""
CLASSES = (1, 16, ROWS)
"""Most rows of each class of steps, for which a linear may have forms of its own."""
_EMBEDDINGS = {DType.BF16.numpy: 0, DType.F16.numpy: 1, DType.F32.numpy: 2}
_STATUS = {1: "what it was given is not its own", 2: "out of memory", 3: "no such instruction set"}

ByRows = tuple[CpuLinear, CpuLinear, CpuLinear]
"""What computes a linear in a step of each of `CLASSES`; mostly one object, three times."""


@dataclass(frozen=True)
class Layer:
    """Linears, and norms and biases in float32, of one layer."""

    linears: Mapping[str, ByRows]  # by `ROLES`
    biases: Mapping[str, F32]
    norms: Mapping[str, F32]  # input_norm, post_norm; q_norm, k_norm where the family has them


@dataclass(frozen=True)
class Plan:
    """A whole decoder, flat.

    Args:
        embedding: `[vocab, hidden]` in bfloat16, float16 or float32; rows are read where they are.
        tables: cosines and sines `[max_tokens, head_dim / 2]`.
        slots: sequences at once.
    """

    spec: DecoderSpec
    layers: Sequence[Layer]
    embedding: NDArray[Any]
    final_norm: F32
    head: ByRows
    tables: tuple[F32, F32]
    slots: int

    def linears(self) -> list[CpuLinear]:
        """Every linear once, the head's too."""
        found = [*self.head]
        for layer in self.layers:
            found += [each for forms in layer.linears.values() for each in forms]
        return list({each.handle: each for each in found}.values())

    def step_bytes(self) -> int:
        """Bytes of weights that a step of one row reads; of the embedding that is one row."""
        forms = [self.head, *(each for layer in self.layers for each in layer.linears.values())]
        return sum(one.row_nbytes for one, *_ in forms)


@dataclass(frozen=True)
class Rows:
    """Rows of a step: each a token of a sequence, at a position."""

    tokens: Sequence[int]
    slots: Sequence[int]
    positions: Sequence[int]


class _Layer(ctypes.Structure):
    _fields_ = (
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("linears", c_void_p * (len(ROLES) * len(CLASSES))),
        ("biases", c_void_p * len(ROLES)),
    )


_SIZES = ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocab")


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in (*_SIZES, "max_tokens", "slots")),
        *((name, c_int32) for name in ("isa", "flags", "embedding_type")),
        ("eps", c_float),
        *((name, c_void_p) for name in ("embedding", "final_norm", "cos", "sin")),
        ("head", c_void_p * len(CLASSES)),
        ("table", c_void_p),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("tokens", "slots", "positions")),
        ("m", c_int64),
        ("first", c_int64),
        *((name, c_void_p) for name in ("logits", "best", "states")),
    )


class Decoder:
    """A plan in the library, and the cache of its sequences.

    Raises:
        ValueError: linears that are not the spec's.
        MemoryError: no room for the buffers.
    """

    def __init__(self, plan: Plan, lib: Library) -> None:
        """Build the library's own table; keeps `plan`, whose memory it points to, alive."""
        self._plan, self._library = plan, lib
        model, self._held = _model(plan)
        handle = c_void_p()
        _raise(lib.decoder_create(ctypes.byref(model), ctypes.byref(handle)))
        self._handle = handle.value
        self._release = weakref.finalize(self, lib.decoder_destroy, self._handle)

    def logits(self, rows: Rows, first: int) -> F32:
        """Run a step; logits `[m - first, vocab]` of its rows from `first` on."""
        found = np.empty((len(rows.tokens) - first, self._plan.spec.vocab), np.float32)
        self._run(rows, first, logits=found)
        return found

    def greedy(self, rows: Rows, first: int) -> list[int]:
        """Run a step; the most likely token after each row from `first` on."""
        found = np.empty(len(rows.tokens) - first, np.int32)
        self._run(rows, first, best=found)
        return found.tolist()

    def states(self, rows: Rows) -> F32:
        """Run a step; `[layers + 2, m, hidden]`: embedding, each layer, last norm."""
        spec = self._plan.spec
        found = np.empty((spec.layers + 2, len(rows.tokens), spec.hidden), np.float32)
        self._run(rows, len(rows.tokens), states=found)
        return found

    def close(self) -> None:
        """Free the cache and the buffers. May be called twice."""
        self._release()

    def _run(self, rows: Rows, first: int, **out: NDArray[Any]) -> None:
        given = [np.asarray(each, np.int32) for each in (rows.tokens, rows.slots, rows.positions)]
        pointers = {name: array.ctypes.data for name, array in out.items()}
        step = _Step(*(each.ctypes.data for each in given), len(given[0]), first, **pointers)
        _raise(self._library.decoder_run(self._handle, ctypes.byref(step)))


def _raise(status: int) -> None:
    if status == 2:
        raise MemoryError("the decoder found no memory")
    if status:
        raise ValueError(f"the decoder refused: {_STATUS.get(status, status)}")


def _model(plan: Plan) -> tuple[_Model, list[Any]]:
    """The C description, and what holds the memory that it points to."""
    spec, first = plan.spec, plan.head[0]
    final, cos, sin = (np.ascontiguousarray(a) for a in (plan.final_norm, *plan.tables))
    held: list[Any] = [final, cos, sin]
    table = (_Layer * spec.layers)(*[_layer(each, held) for each in plan.layers])
    held.append(table)
    model = _Model(
        **{name: getattr(spec, name) for name in _SIZES},
        max_tokens=len(cos),
        slots=plan.slots,
        isa=int(first.isa),
        flags=first.flags,
        embedding_type=_EMBEDDINGS[plan.embedding.dtype],
        eps=spec.norm_eps,
        embedding=plan.embedding.ctypes.data,
        final_norm=final.ctypes.data,
        cos=cos.ctypes.data,
        sin=sin.ctypes.data,
        head=(c_void_p * len(CLASSES))(*[each.handle for each in plan.head]),
        table=ctypes.addressof(table),
    )
    return model, held


def _layer(layer: Layer, held: list[Any]) -> _Layer:
    def pointer(array: F32 | None) -> int | None:
        if array is None:
            return None
        held.append(np.ascontiguousarray(array, np.float32))
        return held[-1].ctypes.data

    handles = [each.handle for role in ROLES for each in layer.linears[role]]
    biases = [pointer(layer.biases.get(role)) for role in ROLES]
    return _Layer(
        *(pointer(layer.norms.get(n)) for n in ("input_norm", "post_norm", "q_norm", "k_norm")),
        (c_void_p * len(handles))(*handles),
        (c_void_p * len(biases))(*biases),
    )
