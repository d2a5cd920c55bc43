"""What computes the packed layers of an engine on a CPU: the kernels, or vLLM's dense product."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, cast

import torch

from backends.packed.engine.choose import Chooser
from backends.packed.kernels.library import Library, library
from backends.packed.kernels.linear import CpuLinear, Precision
from backends.packed.spec import PackedLinear
from backends.packed.torch_unpack import to_numpy
from backends.packed.values import ValueType
from backends.vllm.plugin.resident import Form, Kept, OnKernels
from backends.vllm.plugin.settings import EXECUTE, Memory, execute, memory, threads
from exporter.errors import EngineUnfit

# A child of vLLM's logger: its handler and its level are that one's.
_log = logging.getLogger("vllm.sparse_export")
_INTEGERS = (ValueType.INT8, ValueType.INT4)


class Execution:
    """The choice for each layer, what was chosen, and one line of the log about it.

    One object for all layers of an engine. `auto` asks the packed engine's own `Chooser`, which
    times the kernels' sparse and dense forms of a kind of linear once a machine. Steps of one row
    decide, since a dense copy for longer steps would take memory beside the sparse one.
    `SPARSE_EXPORT_MEMORY=low` wants no dense copy at all, so nothing is timed.
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
        self._chooser = Chooser("sparse" if self.memory == "low" else self._execute)
        self._config = config
        self._open = 0
        self._graphs: list[tuple[str, ...]] = []
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

    def linear(self, shard: Kept, dtype: torch.dtype) -> CpuLinear:
        """A shard's block in the kernels' own memory, sparse, or dense where that is faster.

        Raises:
            EngineUnfit: `engine-unfit`.
            InputRefused: `packed-invalid`.
        """
        spec, tensors = shard
        parts = {part: to_numpy(tensor) for part, tensor in tensors.items()}
        # bfloat16 activations are exact in the products that AVX-512 has for them; of wider ones
        # nothing may be lost. Integer values get 16 bits of them either way: 8 would lose more
        # than bfloat16 has lost already.
        wide: Precision = "int16" if dtype == torch.bfloat16 else "fp32"
        return self._chooser.form(spec, parts, partial(CpuLinear.build, precision=wide))

    def closes(self, modules: Sequence[str], form: Form | None, why_dense: str | None) -> None:
        """Note how a layer runs; with the last one, tell the log and vLLM's cache of graphs.

        Args:
            modules: of its shards.
            form: what computes it; None for vLLM's own dense layer.
            why_dense: why the kernels do not; None on a GPU, too, of which nothing is told here.
        """
        self._graphs.append((*modules, "dense" if form is None else form.graph))
        if isinstance(form, OnKernels):
            kinds = [linear.spec.kind for linear in form.linears]
            self._linears["sparse"] += len(kinds) - kinds.count("dense")
            self._linears["dense on the kernels"] += kinds.count("dense")
            self._bytes += form.nbytes
        elif why_dense is not None:
            how = "dense" if form is None else "decompressed at every call"
            self._linears[f"{how} ({why_dense})"] += len(modules)
        self._open -= 1
        if self._open == 0:
            self._mark()
            if self._linears:
                self._tell()

    @cached_property
    def _library(self) -> Library | str:
        """The kernels, on the threads that they shall have; or why there are none."""
        try:
            found = library()
            isa = found.choose()
        except EngineUnfit as error:
            _log.warning("sparse-export: linears run dense: %s", " ".join(str(error).split()))
            return str(error).splitlines()[0]
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
            text = json.dumps(sorted(self._graphs)).encode()
            cast(dict[str, Any], extra)["sparse_export"] = hashlib.sha256(text).hexdigest()

    def _tell(self) -> None:
        counts = dict(self._linears)
        sparse, total = counts.pop("sparse", 0), sum(counts.values())
        where = f" ({self._where}, {self._bytes / 1e6:.1f} MB)" if self._bytes else ""
        rest = "".join(f"; {count} {how}" for how, count in counts.items() if count)
        text = "sparse-export: %d of %d linears run sparse on the CPU kernels%s%s"
        _log.info(text, sparse, sparse + total, where, rest)
        for kind, choice in self._chooser.told().items():
            _log.info("sparse-export: %s: %s", kind, choice)
