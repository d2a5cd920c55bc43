"""What computes the packed layers of an engine on a CPU: the kernels, or vLLM's dense product."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch.nn import Module

from backends.packed.engine.choose import Chooser
from backends.packed.kernels.library import Library, library
from backends.packed.kernels.linear import CpuLinear
from backends.packed.spec import PackedLinear, Parts
from backends.packed.torch_unpack import to_numpy
from backends.packed.values import ValueType
from backends.vllm.plugin.resident import Kept, OnKernels
from backends.vllm.plugin.retype import retyped
from backends.vllm.plugin.settings import EXECUTE, Memory, execute, memory, threads
from exporter.errors import EngineUnfit

# A child of vLLM's logger: its handler and its level are that one's.
_log = logging.getLogger("vllm.sparse_export")
_INTEGERS = (ValueType.INT8, ValueType.INT4)


class Execution:
    """The choice for each layer, what was chosen, and one line of the log about it.

    One object for all layers of an engine. `auto` asks the packed engine's own `Chooser`, which
    times both forms of a kind of linear once a machine: the shards' steps of one row decide, for a
    layer with dense copies for longer steps would take their memory. `SPARSE_EXPORT_MEMORY=low`
    wants no dense copy, so nothing is timed.
    """

    def __init__(self, config: object = None) -> None:
        """Read the settings.

        Args:
            config: vLLM's of the engine, if any.

        Raises:
            UsageError: `usage`, for a value that a setting does not have.
        """
        self.memory: Memory = memory()
        self._execute, self._threads = execute(), threads()
        self._chooser = Chooser(self._execute)
        self._config = config
        self._open = 0
        self._done: list[tuple[str, str]] = []
        self._linears: Counter[str] = Counter()
        self._bytes = 0

    def opens(self) -> None:
        """Say that a layer was made that `closes` will be called for."""
        self._open += 1

    def why_dense(self, specs: Sequence[PackedLinear], dtype: torch.dtype) -> str | None:
        """Why the kernels are not to compute a layer, or None.

        Args:
            specs: of its packed shards.
            dtype: of activations.
        """
        if not any(spec.kind != "dense" for spec in specs):
            return "nothing stored sparse"
        if self._execute == "dense":
            return f"{EXECUTE}=dense"
        if isinstance(self._library, str):
            return self._library
        integers = any(spec.values in _INTEGERS for spec in specs)
        if integers and dtype == torch.float32 and self._execute == "auto":
            return "float32 activations, which integer kernels would round to 16 bits"
        return None

    def form(self, layer: Module, shards: Sequence[Kept], dtype: torch.dtype) -> OnKernels | None:
        """The layer on the kernels; None where dense is faster. Shards that are packed stay so.

        Raises:
            EngineUnfit: `engine-unfit`.
            InputRefused: `packed-invalid`.
        """
        made: list[CpuLinear] = []
        dense = 0
        for spec, tensors in shards:
            parts = {part: to_numpy(tensor) for part, tensor in tensors.items()}
            spec, parts = retyped(spec, parts, dtype)
            made.append(_build(spec, parts))
            if self.memory == "fast":
                use = self._chooser.prefers_dense(spec, parts, made[-1], _build)
                dense += use[0] * spec.shape[0]
        if 2 * dense > sum(spec.shape[0] for spec, _ in shards):
            return None
        form = OnKernels(layer, made)
        self._bytes += form.nbytes
        return form

    def closes(self, modules: Sequence[str], how: str, why: str = "") -> None:
        """Note how a layer runs; with the last one, tell the log and vLLM's cache of graphs.

        Args:
            modules: of its shards.
            how: whatever makes its part of a compiled graph another one.
            why: it is dense.
        """
        self._done.append((",".join(modules), how))
        self._linears[f"dense ({why})" if why else how] += len(modules)
        self._open -= 1
        if self._open == 0:
            self._mark()
            self._tell()

    @cached_property
    def _library(self) -> Library | str:
        """The kernels, on the threads that they shall have; or why there are none."""
        try:
            found = library()
            isa = found.choose()
        except EngineUnfit as error:
            text = str(error).splitlines()[0]
            _log.warning("sparse-export: linears run dense: %s", text)
            return text
        count = torch.get_num_threads()
        shared = self._threads == "openmp" and found.share_threads(count)
        if not shared:
            found.share_threads(0)
            found.threads = count
        self._where = f"{isa.label}, {found.threads} threads, {'openmp' if shared else 'own pool'}"
        return found

    def _mark(self) -> None:
        """Let the key of vLLM's cache of compiled graphs depend on how layers run.

        It is made of vLLM's own settings and variables, and a graph that is found is run without
        guards (vllm/compilation/decorators.py): after a change of ours it would be another model's.
        """
        extra = getattr(self._config, "additional_config", None)
        if isinstance(extra, dict):
            text = json.dumps(sorted(self._done)).encode()
            cast(dict[str, Any], extra)["sparse_export"] = hashlib.sha256(text).hexdigest()

    def _tell(self) -> None:
        total = sum(self._linears.values())
        sparse = self._linears.get("kernels", 0)
        where = f" ({self._where}, {self._bytes / 1e6:.1f} MB)" if sparse else ""
        rest = "".join(f"; {n} {how}" for how, n in self._linears.items() if how != "kernels")
        _log.info(
            "sparse-export: %d of %d linears run sparse on the CPU kernels%s%s",
            sparse, total, where, rest,
        )  # fmt: skip
        for kind, choice in self._chooser.told().items():
            _log.info("sparse-export: %s: %s", kind, choice)


def _build(spec: PackedLinear, parts: Parts) -> CpuLinear:
    # 8 bits of activations would lose more than bfloat16 ones have lost already.
    return CpuLinear.build(spec, parts, precision="int16")
