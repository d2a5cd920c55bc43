"""A fused model held in memory, and a target of one raw file whose engine is the slow decoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from exporter.arch.spec import Linear, load_spec
from exporter.contract import (
    Facts,
    Generation,
    LowerPlan,
    PlannedFile,
    RuntimeStatus,
    RuntimeWindow,
    StoredTensor,
    Tolerance,
)
from exporter.model import CheckedModel, FusedModel, FusedTensor, LowRank
from exporter.sparsity.mask import Mask
from exporter.store.checkpoint import Checkpoint, Sidecar
from tests.reference.slow_decoder import SlowDecoder

Arrays = dict[str, Any]
WEIGHTS = "weights.bin"
GRAPH = "graph.json"


@dataclass(frozen=True)
class Masks:
    """Masks read from the zeros of arrays."""

    arrays: Arrays
    origin: str = "zeros"

    def mask(self, linear: Linear) -> Mask:
        return Mask.from_bool(self.arrays[linear.weight] != 0)


@dataclass(frozen=True)
class MemoryModel(FusedModel):
    """A fused model whose masks are given outright."""

    own_masks: Mapping[str, Mask] = field(default_factory=dict)

    def mask(self, tensor: str) -> Mask | None:
        return self.own_masks.get(tensor)


def memory_model(folder: Path, branches: Mapping[str, LowRank] | None = None) -> MemoryModel:
    """The folder that `save_tiny` made as a fused model; no other part of the exporter runs."""
    config = json.loads((folder / "config.json").read_text())
    return from_arrays(config, load_file(folder / "model.safetensors"), folder, branches)


def from_arrays(
    config: Mapping[str, Any],
    arrays: Arrays,
    folder: Path,
    branches: Mapping[str, LowRank] | None = None,
) -> MemoryModel:
    """A fused model of float32 arrays by name."""
    spec = load_spec(config)
    sidecars = tuple(Sidecar(p.name, p) for p in (folder / "tokenizer.json",) if p.is_file())
    checkpoint = Checkpoint(folder, {}, config, sidecars)
    checked = CheckedModel(checkpoint, spec, {}, Masks(arrays), spec.tied)
    linears = {linear.weight: linear for linear in spec.linears()}
    tensors = {
        name: FusedTensor(
            name, shape, lambda a, b, n=name: arrays[n][a:b].copy(), linears.get(name)
        )
        for name, shape in spec.tensors().items()
    }
    masks = {w: Mask.from_bool(arrays[w] != 0) for w in linears}
    return MemoryModel(checked, tensors, branches or {}, spec.tied, {}, own_masks=masks)


def arrays_of(model: FusedModel) -> Arrays:
    """All tensors as float32 arrays."""
    return {n: t.rows(0, t.shape[0]) for n, t in model.tensors.items()}


class FakeSession:
    """The slow decoder behind the Session contract, answers in float32."""

    def __init__(self, config: Mapping[str, Any], arrays: Arrays, max_tokens: int) -> None:
        self.decoder = SlowDecoder(config, arrays)
        self._max = max_tokens
        self.closed = 0

    @property
    def max_tokens(self) -> int:
        return self._max

    def prefill(self, tokens: Sequence[int], *, logits: str = "all") -> Any:
        self.decoder.reset()
        rows = self.decoder.feed(tokens)[0].astype(np.float32)
        return rows if logits == "all" else rows[-1:]

    def decode(self, token: int) -> Any:
        return self.decoder.step(token)[0].astype(np.float32)

    def generate(self, tokens: Sequence[int], n: int) -> Generation:
        row, out = self.prefill(tokens)[-1], []
        while len(out) < n:
            out.append(int(row.argmax()))
            row = self.decode(out[-1]) if len(out) < n else row
        return Generation(tuple(out), tuple(0.001 * (i + 1) for i in range(n)))

    def facts(self) -> Facts:
        return Facts("slow", "1", 1, 1.0, 0, 0, 0.0)

    def close(self) -> None:
        self.closed += 1


Change = Callable[[Arrays], None]


@dataclass(frozen=True)
class FakeTarget:
    """Writes `graph.json` and `weights.bin`; `change` plants a fault in what is written.

    `engine` plants one in what runs: it gets the session and gives back the one to use.
    """

    change: Change | None = None
    engine: Callable[[FakeSession], Any] | None = None
    state: Change | None = None  # plants a fault in the weights the engine loads
    name: str = "fake"
    tolerance: Tolerance = Tolerance(1e-4)
    max_tokens: int = 256
    available: bool = True
    dtype: str = "F32"
    extra: Mapping[str, Any] = field(default_factory=dict)  # more stored tensors

    window = RuntimeWindow("slow", "1", "any", "any")

    def runtime(self) -> RuntimeStatus:
        return RuntimeStatus(self.available, "ready" if self.available else "no such CPU")

    def inspect(self, model: FusedModel) -> list[Any]:
        return []

    def plan(self, model: FusedModel) -> LowerPlan:
        return LowerPlan((PlannedFile(GRAPH, 1), PlannedFile(WEIGHTS, 1)), 0)

    def lower(self, model: FusedModel, staging: Path, progress: Any = None) -> None:
        arrays = {**arrays_of(model), **self.extra}
        for module, branch in model.branches.items():
            arrays[f"{module}.branch.a"] = branch.a
            arrays[f"{module}.branch.b"] = branch.b
        if self.change is not None:
            self.change(arrays)
        write_folder(staging, arrays, dict(model.checked.checkpoint.config))

    def read_back(self, folder: Path) -> Iterable[StoredTensor]:
        for name, values in load_arrays(folder).items():
            yield StoredTensor(
                name.removesuffix("#2"),
                values.shape,
                self.dtype,
                WEIGHTS,
                values.nbytes,
                lambda a, b, v=values: v[a:b].copy(),
                lambda v=values: hashlib.sha256(v.tobytes()).hexdigest(),
            )

    def open(self, folder: Path, *, threads: int | None = None) -> Any:
        session = FakeSession(*self._loaded(folder), self.max_tokens)
        return session if self.engine is None else self.engine(session)

    def probe(self, folder: Path, tokens: Sequence[int]) -> Mapping[str, Any]:
        states = SlowDecoder(*self._loaded(folder)).feed(tokens)[1]
        return {k: v.astype(np.float32) for k, v in states.items()}

    def _loaded(self, folder: Path) -> tuple[dict[str, Any], Arrays]:
        arrays = load_arrays(folder)
        if self.state is not None:
            self.state(arrays)
        return json.loads((folder / GRAPH).read_text())["config"], arrays


def write_folder(folder: Path, arrays: Arrays, config: dict[str, Any]) -> None:
    """All arrays one after another, and where each lies."""
    layout, at = [], 0
    with (folder / WEIGHTS).open("wb") as file:
        for name, values in arrays.items():
            values = np.ascontiguousarray(values, dtype=np.float32)
            file.write(values.tobytes())
            layout.append([name, list(values.shape), at])
            at += values.nbytes
    (folder / GRAPH).write_text(json.dumps({"config": config, "layout": layout}))


def load_arrays(folder: Path) -> Arrays:
    """Read `write_folder`'s files."""
    raw = (folder / WEIGHTS).read_bytes()
    out: Arrays = {}
    for name, shape, at in json.loads((folder / GRAPH).read_text())["layout"]:
        count = int(np.prod(shape))
        out[name] = np.frombuffer(raw, "<f4", count, at).reshape(shape).copy()
    return out
