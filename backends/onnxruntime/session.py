"""Session on onnxruntime, in process, for both interfaces of the decoder graph.

The cache grows: what the engine returns is fed back as it is, without a copy to numpy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import (
    onnxruntime_pybind11_state as ort_errors,  # pyright: ignore[reportAttributeAccessIssue]
)

from backends.onnxruntime import operators
from exporter.contract import Facts, Generation
from exporter.errors import EngineUnfit
from exporter.memory import peak_rss_bytes
from exporter.store.dtypes import F32

# onnxruntime has no common base of its own for these.
ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,  # out of memory, and what the binding itself throws
)
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"


def refused(error: Exception) -> EngineUnfit:
    """onnxruntime's message as a typed error."""
    return EngineUnfit("engine-refused", str(error).strip()[:2000], file="model.onnx")


def default_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load(model: Path | bytes, folder: Path, threads: int) -> Any:
    """An onnxruntime session of a graph file, or of a graph in memory with data in `folder`.

    Raises:
        EngineUnfit: `engine-refused`; for a graph with our operators also `engine-missing` and
            `engine-unfit`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # warnings about our own graph are for tests, not for users
    if isinstance(model, bytes):
        options.add_session_config_entry(_FOLDER_KEY, str(folder))
    source = model if isinstance(model, bytes) else str(model)
    version = operators.asked(model)
    try:
        with _building(options, version, threads):
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise refused(error) from error


@contextmanager
def _building(options: Any, version: int | None, threads: int) -> Generator[None, None, None]:
    """Our operators, where a graph asks for a version of them.

    As the session is made, the kernels order the weights in threads of their own, no more than the
    session has; what it runs later runs in the session's.
    """
    if version is None:
        yield
        return
    kernels = operators.register(options, version)
    before, kernels.threads = kernels.threads, threads
    try:
        yield
    finally:
        kernels.threads = before


class OrtSession:
    """An artefact folder (model.onnx, model.data) in onnxruntime on the CPU, batch 1.

    Raises:
        EngineUnfit: as `load`.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self._threads = threads or default_threads()
        start = time.perf_counter()
        self._session: Any = load(folder / "model.onnx", folder, self._threads)
        self._load_seconds = time.perf_counter() - start
        facts: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._io = facts.get("sparse_export.io", "")
        longest = facts.get("sparse_export.sequence_length", "")
        data = folder / "model.data"
        ours = self._io in ("deepsparse", "optimum") and longest.isdecimal() and data.is_file()
        if not ours:
            raise EngineUnfit("engine-refused", "the graph is not one of ours", file="model.onnx")
        self._own = operators.told(facts)
        self._weight_bytes, self._max_tokens = data.stat().st_size, int(longest)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._past: list[Any] = [v for v in inputs if v.name.startswith("past_key_values.")]
        self._outputs: list[str] = [v.name for v in outputs]
        self._cache: list[Any] = []
        self._length = 0
        self._reset()

    @property
    def max_tokens(self) -> int:
        """Longest sequence, prompt and answer together."""
        return self._max_tokens

    def prefill(self, tokens: Sequence[int], *, logits: Literal["all", "last"] = "all") -> F32:
        """Empty the cache, feed `tokens`; float32 logits `[T, V]`, or `[1, V]` for "last".

        Raises:
            EngineUnfit: `engine-refused`, also where the sequence is longer than the graph's.
        """
        self._reset()
        rows = self._feed(tokens)
        return rows if logits == "all" else rows[-1:]

    def decode(self, token: int) -> F32:
        """Feed one token after what the cache holds; float32 logits `[V]`."""
        return self._feed([token])[0]

    def generate(self, tokens: Sequence[int], n: int) -> Generation:
        """Empty the cache, feed `tokens`, then `n` greedy tokens (no stop token)."""
        start = time.perf_counter()
        found: list[int] = []
        seconds: list[float] = []
        for step in range(n):
            row = self.decode(found[-1]) if step else self.prefill(tokens, logits="last")[0]
            found.append(int(row.argmax()))
            seconds.append(time.perf_counter() - start)
        return Generation(tuple(found), tuple(seconds))

    def facts(self) -> Facts:
        """What runs here."""
        return Facts(
            engine="onnxruntime",
            version=ort.__version__,
            threads=self._threads,
            ops_share=1.0,  # the CPU provider is the engine; there is nothing to fall back to
            weight_bytes=self._weight_bytes,
            peak_rss_bytes=peak_rss_bytes(),
            load_seconds=self._load_seconds,
            extra={"io": self._io, "cache": "growing", **self._own},
        )

    def close(self) -> None:
        """Free the engine's memory."""
        self._cache, self._session = [], None

    def _reset(self) -> None:
        self._length = 0
        self._cache = []
        for value in self._past:
            _, heads, _, size = value.shape
            empty = np.empty((1, heads, 0, size), np.float32)
            self._cache.append(ort.OrtValue.ortvalue_from_numpy(empty))

    def _feed(self, tokens: Sequence[int]) -> F32:
        """Run `tokens` after the cache, keep the new cache; logits `[T, V]`."""
        if self._session is None:
            raise EngineUnfit("engine-refused", "the session is closed")
        after = self._length + len(tokens)
        if not tokens or after > self._max_tokens:
            raise EngineUnfit(
                "engine-refused",
                f"a sequence of {after} tokens",
                expected=f"1 to {self._max_tokens}, the length that this artefact was made for",
            )
        binding = self._session.io_binding()
        for name, array in feeds(self._io, tokens, self._length).items():
            binding.bind_cpu_input(name, array)
        for value, cached in zip(self._past, self._cache, strict=True):
            binding.bind_ortvalue_input(value.name, cached)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except ORT_ERRORS as error:
            raise refused(error) from error
        logits, *self._cache = binding.get_outputs()
        self._length = after
        return logits.numpy()[0]


def feeds(io: str, tokens: Sequence[int], past: int) -> dict[str, Any]:
    """Integer inputs, int64, for `tokens` after `past` cached ones, nothing padded."""
    after = past + len(tokens)
    positions = np.arange(past, after, dtype=np.int64)
    arrays: dict[str, Any] = {
        "input_ids": np.asarray(tokens, np.int64)[None],
        "attention_mask": np.ones((1, after), np.int64),
    }
    if io == "optimum":
        return {**arrays, "position_ids": positions[None]}
    seen = (np.arange(after) <= positions[:, None]).astype(np.int64)
    return {**arrays, "positions": positions[None], "causal_mask": seen[None, None]}
