"""Target `onnxruntime`: model.onnx and model.data as optimum's ORTModelForCausalLM reads them."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from backends.decoder_graph.narrow import decoder_spec, no_graph
from backends.decoder_graph.need import need_onnx
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
from exporter.errors import EngineUnfit
from exporter.model import FusedModel
from exporter.store.dtypes import F32

# onnx and onnxruntime are an extra and slow to import: a listing of targets needs neither.
_NEEDED = ("onnx", "onnxruntime")


@dataclass(frozen=True)
class OnnxRuntimeTarget:
    """Options of `--target onnxruntime`.

    `sequence_length`: longest sequence; left out, the model's positions or sliding window.
    """

    sequence_length: int | None = None

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
        """Float32 against float32: only the order of sums differs."""
        return Tolerance(max_rel=1e-4)

    def runtime(self) -> RuntimeStatus:
        """Whether onnx and onnxruntime are installed; imports neither."""
        python = platform.python_version()
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            reason = f"{' and '.join(missing)} not installed: pip install 'sparse-export[onnx]'"
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
        text = "onnxruntime computes zeros like any weight: sparsity does not speed it up"
        found.append(Diagnostic("note", text))
        return found

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
        status = self.runtime()
        if not status.available:
            raise EngineUnfit("engine-missing", status.reason)

    def _options(self):
        from backends.decoder_graph.options import GraphOptions

        return GraphOptions(io="optimum", sequence_length=self.sequence_length)
