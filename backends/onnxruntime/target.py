"""Target `onnxruntime`: model.onnx and model.data as optimum's ORTModelForCausalLM reads them."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from backends.decoder_graph.narrow import decoder_spec, no_graph
from backends.decoder_graph.need import need_onnx
from backends.decoder_graph.options import DOMAIN, OPERATORS, GraphOptions, SparseValues
from backends.hf.rounded import as_stored
from backends.packed.kernels.compile import LIBRARY
from exporter.contract import (
    Diagnostic,
    LowerPlan,
    Progress,
    RuntimeStatus,
    RuntimeWindow,
    Session,
    StoredTensor,
    Tolerance,
)
from exporter.errors import EngineUnfit, UsageError
from exporter.model import FusedModel
from exporter.store.dtypes import F32, DType

# onnx and onnxruntime are an extra and slow to import: a listing of targets needs neither.
_NEEDED = ("onnx", "onnxruntime")


@dataclass(frozen=True)
class OnnxRuntimeTarget:
    """Options of `--target onnxruntime`.

    Args:
        sequence_length: longest sequence; None for the model's positions or sliding window.
        sparse_ops: "on": sparse linears become nodes of our own operator, which skips their zeros;
            the graph then needs the library of the CPU kernels wherever it runs.
        values: of such nodes; None for fp32.
    """

    sequence_length: int | None = None
    sparse_ops: Literal["off", "on"] = "off"
    values: SparseValues | None = None

    def __post_init__(self) -> None:
        """Refuse options that contradict one another.

        Raises:
            UsageError: `target-option`.
        """
        if self.values is not None and self.sparse_ops == "off":
            found = f"{self.name}: values={self.values} without sparse_ops=on"
            raise UsageError("target-option", found, expected="sparse_ops=on beside it")

    @property
    def name(self) -> str:
        """The name given to --target."""
        return "onnxruntime"

    @property
    def window(self) -> RuntimeWindow:
        """onnxruntime from the version that reads external data beside a graph in memory."""
        return RuntimeWindow("onnxruntime", ">=1.20", ">=3.10", "any CPU onnxruntime runs on")

    @property
    def tolerance(self) -> Tolerance:
        """Float32 against float32, whatever the values are stored in: only the order of sums
        differs."""
        return Tolerance(max_rel=1e-4)

    @property
    def needs(self) -> Mapping[str, str]:
        """What must be there beside the engine: our operators, by domain and version."""
        if self.sparse_ops == "off":
            return {}
        return {f"operators {DOMAIN}": f"{OPERATORS}, in {LIBRARY.name}"}

    def runtime(self) -> RuntimeStatus:
        """Whether onnx and onnxruntime are installed; imports neither but for `sparse_ops`."""
        python = platform.python_version()
        if reason := _packages_missing():
            return RuntimeStatus(False, reason, python=python)
        if self.sparse_ops == "on":
            from backends.onnxruntime.operators import operators

            try:
                operators()
            except EngineUnfit as error:
                reason = f"{error.found}; expected {error.expected}"
                return RuntimeStatus(False, reason, python=python)
        return RuntimeStatus(True, "ready", version("onnxruntime"), python)

    def inspect(self, model: FusedModel) -> Sequence[Diagnostic]:
        """Notes on the sequence length, and what onnxruntime makes of sparse weights."""
        refused = no_graph(model.spec)
        if refused:
            return refused
        spec = decoder_spec(model.spec)
        found: list[Diagnostic] = []
        if self.sequence_length is not None and not (
            1 <= self.sequence_length <= spec.full_context
        ):
            limit = f"sequence_length={self.sequence_length} is outside 1 to {spec.full_context}"
            found.append(Diagnostic("refusal", limit))
        if spec.sliding_window is not None:
            text = f"sequences end at {spec.sliding_window}, the model's sliding window"
            found.append(Diagnostic("warning", text))
        found.append(self._note(model))
        return found

    def _note(self, model: FusedModel) -> Diagnostic:
        if self.sparse_ops == "off":
            text = "onnxruntime computes zeros like any weight: sparsity does not speed it up"
            return Diagnostic("note", f"{text}; sparse_ops=on has kernels for it")
        from backends.decoder_graph.packed import packed_linears

        packed, linears = packed_linears(model, self._options()), list(model.spec.linears())
        if not packed:
            return Diagnostic("warning", "sparse_ops=on: no linear is sparse, so none is packed")
        text = f"{len(packed)} of {len(linears)} linears become nodes of {DOMAIN} {OPERATORS}"
        return Diagnostic("note", f"{text}: the graph needs {LIBRARY.name} to run")

    def plan(self, model: FusedModel) -> LowerPlan:
        """Sizes and memory, from headers alone."""
        need_onnx()
        from backends.companions import plan_companions
        from backends.decoder_graph.lower import plan_decoder

        plan = plan_decoder(model, self._options())
        return replace(plan, files=(*plan.files, *plan_companions(model)))

    def lower(self, model: FusedModel, staging: Path, progress: Progress) -> None:
        """Write graph, weights, config and tokenizer files."""
        need_onnx()
        from backends.companions import write_companions
        from backends.decoder_graph.lower import lower_decoder

        lower_decoder(model, staging, self._options(), progress)
        write_companions(model, staging)

    def as_written(self, model: FusedModel) -> FusedModel:
        """The values as stored; see `contract.Rounds`."""
        if self.values != "bf16":
            return model
        from backends.decoder_graph.packed import packed_linears

        stored = dict.fromkeys(model.tensors, DType.F32)
        packed = packed_linears(model, self._options())
        return as_stored(model, stored | dict.fromkeys(packed, DType.BF16))

    def read_back(self, folder: Path) -> Iterable[StoredTensor]:
        """Every weight, re-read by the graph alone."""
        need_onnx()
        from backends.decoder_graph.read_back import read_back

        return read_back(folder)

    def open(self, folder: Path, *, threads: int | None = None) -> Session:
        """Run an artefact in this process.

        Raises:
            EngineUnfit: `engine-missing`, `engine-refused`.
        """
        self._need_engine()
        from backends.onnxruntime.session import OrtSession

        return OrtSession(folder, threads)

    def probe(self, folder: Path, tokens: Sequence[int]) -> Mapping[str, F32]:
        """Hidden states `[T, hidden]` after each layer ("embedding", "layer.0", ..., "norm")."""
        self._need_engine()
        from backends.onnxruntime.probe import probe

        return probe(folder, tokens)

    def _need_engine(self) -> None:
        if reason := _packages_missing():
            raise EngineUnfit("engine-missing", reason)

    def _options(self):
        packed = (self.values or "fp32") if self.sparse_ops == "on" else None
        return GraphOptions("optimum", self.sequence_length, packed=packed)


def _packages_missing() -> str:
    """Why neither graph nor engine can be imported; "" where both can."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return f"{' and '.join(missing)} not installed: pip install 'sparse-export[onnx]'"
