"""The target `deepsparse`: a decoder graph that DeepSparse 1.8.0 compiles, and its session."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from backends.base import (
    Diagnostic,
    LowerPlan,
    PlannedFile,
    Progress,
    RuntimeStatus,
    RuntimeWindow,
    Session,
    StoredTensor,
    Tolerance,
)
from backends.companions import plan_companions, write_companions
from backends.decoder_graph.narrow import decoder_spec
from backends.decoder_graph.need import need_onnx
from backends.decoder_graph.options import GraphOptions
from backends.deepsparse.diagnose import diagnose, refusals
from backends.deepsparse.runtime import LICENCE, RUNTIME, WORKER
from backends.deepsparse.settings import (
    SETTINGS_FILE,
    Cache,
    Settings,
    chunk_fits,
    read_settings,
    resolve,
)
from backends.deepsparse.tokenizer import rewrites
from backends.process.client import ProcessSession
from exporter.errors import UsageError
from exporter.model import FusedModel
from exporter.store.dtypes import F32
from exporter.store.writer import RawWriter

_START_SECONDS = 1800.0  # two compilations; pruned billions of weights take minutes each


@dataclass(frozen=True)
class DeepSparseTarget:
    """Options of `--target deepsparse`.

    Args:
        sequence_length: longest prompt and answer together, a multiple of 64; None for the
            model's own up to 1024.
        prefill_chunk: tokens of the prompt fed at once, 1 or a multiple of 4; None for 64 where
            the sequence length allows: the shortest at which sparsity was measured to pay.
        cache: keys and values in the engine or passed in and out; auto takes the engine's own
            wherever it was measured to be right.
    """

    sequence_length: int | None = None
    prefill_chunk: int | None = None
    cache: Cache = "auto"

    own_process: ClassVar[bool] = True  # `open` starts one: no need for another around it

    @property
    def name(self) -> str:
        """The name given to --target."""
        return "deepsparse"

    @property
    def window(self) -> RuntimeWindow:
        """One version: the last that was made."""
        hardware = "Linux on x86-64 with AVX2"
        return RuntimeWindow("deepsparse", RUNTIME.version, str(RUNTIME.python), hardware, LICENCE)

    @property
    def tolerance(self) -> Tolerance:
        """Float32 throughout, other orders of summation."""
        return Tolerance(max_rel=1e-3)

    def runtime(self) -> RuntimeStatus:
        """Whether the managed environment is here and this machine can run it."""
        return RUNTIME.status()

    def fallback(self) -> str:
        """onnxruntime runs the same graph where DeepSparse cannot run."""
        return "onnxruntime"

    def inspect(self, model: FusedModel) -> Sequence[Diagnostic]:
        """As `Target.inspect`.

        Raises:
            UsageError: `target-option`.
        """
        refused = list(refusals(model))
        if refused:
            return refused
        plan = self._plan(model)
        nbytes = max(file.nbytes for file in plan.files)
        return list(diagnose(model, self._settings(model), nbytes))

    def plan(self, model: FusedModel) -> LowerPlan:
        """As `Target.plan`."""
        plan = self._plan(model)
        settings = PlannedFile(SETTINGS_FILE, len(self._settings(model).as_json()))
        return replace(plan, files=(*plan.files, *plan_companions(model), settings))

    def lower(self, model: FusedModel, staging: Path, progress: Progress) -> None:
        """Write model.onnx, model.data, config, tokenizer files and `deepsparse.json`."""
        need_onnx()
        from backends.decoder_graph.lower import lower_decoder

        lower_decoder(model, staging, self._graph(model), progress)
        write_companions(model, staging)
        for name, rewrite in rewrites().items():
            path = staging / name
            changed = rewrite(path) if path.is_file() else None
            if changed is not None:
                path.unlink()
                _write(path, changed)
        _write(staging / SETTINGS_FILE, self._settings(model).as_json())

    def read_back(self, folder: Path) -> Iterable[StoredTensor]:
        """As `Target.read_back`."""
        need_onnx()
        from backends.decoder_graph.read_back import read_back

        return read_back(folder)

    def open(self, folder: Path, *, threads: int | None = None) -> Session:
        """Compile a copy of the graph in a process of DeepSparse's environment.

        The engine rewrites model.onnx where it lies, so it gets a copy and a link to the data.

        Raises:
            EngineUnfit: `engine-missing`, `engine-unfit`, `engine-refused`, `engine-crashed`,
                `engine-timeout`.
        """
        python = RUNTIME.interpreter()
        settings = self._override(read_settings(folder))
        with tempfile.TemporaryDirectory(prefix="sparse-export-") as work:
            numbers = (settings.sequence_length, settings.prompt_sequence_length)
            arguments = [str(folder.absolute()), work, *map(str, numbers), settings.cache]
            argv = [str(python), "-I", "-B", str(WORKER), *arguments, str(threads or 0)]
            environment = RUNTIME.environment()
            return ProcessSession(argv, env=environment, startup_timeout=_START_SECONDS)

    def probe(self, folder: Path, tokens: Sequence[int]) -> Mapping[str, F32]:
        """As `Target.probe`, in onnxruntime: DeepSparse shows no value inside its graph."""
        from backends.onnxruntime.target import OnnxRuntimeTarget

        return OnnxRuntimeTarget().probe(folder, tokens)

    def _plan(self, model: FusedModel) -> LowerPlan:
        need_onnx()
        from backends.decoder_graph.lower import plan_decoder

        return plan_decoder(model, self._graph(model))

    def _settings(self, model: FusedModel) -> Settings:
        spec = decoder_spec(model.spec)
        return resolve(spec, self.sequence_length, self.prefill_chunk, self.cache)

    def _graph(self, model: FusedModel) -> GraphOptions:
        return GraphOptions(io="deepsparse", sequence_length=self._settings(model).sequence_length)

    def _override(self, made: Settings) -> Settings:
        """Options given for this run over those the artefact was made with."""
        length = self.sequence_length or made.sequence_length
        chunk = self.prefill_chunk or made.prompt_sequence_length
        internal = made.internal_kv_cache and self.cache != "external"
        if length > made.sequence_length or length % 64 or not chunk_fits(chunk, length, internal):
            found = f"sequence_length={length}, prefill_chunk={chunk}"
            raise UsageError("target-option", found, expected=f"what fits {made}")
        return Settings(length, chunk, internal)


def _write(path: Path, data: bytes) -> None:
    with RawWriter(path) as writer:
        writer.write(data)
        writer.close()
