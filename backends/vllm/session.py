"""Session on vLLM (CPU), in the managed environment and in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from backends.process.client import ProcessSession
from backends.vllm.runtime import RUNTIME, WORKER
from exporter.arch.spec import artefact_spec
from exporter.store.dtypes import F32
from exporter.store.jsonio import read_json

_LENGTH = 2048  # longest sequence where the model allows more: the cache takes memory for it
_BLOCK = 128  # tokens of a page of vLLM's CPU cache (vllm/platforms/cpu.py)
_START_SECONDS = 900.0  # 25 s on two idle cores; large models must also be read
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_ENVIRONMENT = {
    # The whole engine in the worker's process: its model runner must be in reach.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_PLUGINS": "sparse-export",
    "VLLM_HOST_IP": "127.0.0.1",  # its process group of one needs an address
}


class VllmSession(ProcessSession):
    """A `Session` on vLLM that also shows hidden states."""

    def hidden_states(self, tokens: Sequence[int]) -> Mapping[str, F32]:
        """As `Target.probe`; ends the sequence that the session holds."""
        request = {"op": "hidden_states", "tokens": [int(token) for token in tokens]}
        return cast(Mapping[str, F32], self._call(request)[1])


def open_session(
    folder: Path,
    threads: int | None = None,
    *,
    dtype: str = "float32",
    env: Mapping[str, str] | None = None,
) -> VllmSession:
    """Load `folder` with vLLM, eagerly, without prefix caching; batch 1.

    Args:
        folder: a model folder, packed or dense; only read.
        threads: of OpenMP; None for as many as the machine and OMP_NUM_THREADS give.
        dtype: of activations. float32, since the check is of what the files say.
        env: further variables for the engine.

    Raises:
        EngineUnfit: `engine-missing`, `engine-unfit`, `install-failed` of the environment;
            `engine-refused` where vLLM does not load the folder, or what its plugin reports;
            `engine-crashed`, `engine-timeout`.
        InputRefused: `arch-unsupported`, `config-invalid`.
    """
    spec = artefact_spec(read_json(folder / "config.json"))
    length = min(int(spec.max_positions), _LENGTH)
    # One page beyond what the sequence needs: vLLM keeps one that stands for nothing.
    pages = -(-length // _BLOCK) + 2
    page = 2 * spec.layers * spec.kv_heads * spec.head_dim * _BLOCK * _BYTES[dtype]
    variables = {**RUNTIME.environment(), **_ENVIRONMENT, **(env or {})}
    variables.pop("VLLM_CPU_KVCACHE_SPACE", None)  # meant for servers, and stronger than our bytes
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    python = RUNTIME.interpreter()
    argv: list[Any] = [python, "-I", WORKER, folder.absolute(), length, pages * page, dtype]
    return VllmSession([str(word) for word in argv], env=variables, startup_timeout=_START_SECONDS)
