"""Session on plain transformers: the folder as `AutoModelForCausalLM.from_pretrained` loads it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

# With this, transformers reads packed folders too, which other targets may verify by.
import backends.packed.transformers  # noqa: F401  # pyright: ignore[reportUnusedImport]
from backends.reference.session import TorchReference
from backends.vllm.legacy.transformers import legacy_config, legacy_format
from exporter.arch.spec import artefact_spec
from exporter.contract import Facts, Generation
from exporter.errors import EngineUnfit, SparseExportError, UsageError
from exporter.store.dtypes import F32
from exporter.store.jsonio import read_json

# What transformers lets through from a folder that is broken; it has no error of its own.
_LOAD_ERRORS: tuple[type[Exception], ...] = (
    SparseExportError,
    SafetensorError,
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
)


def open_session(folder: Path, threads: int | None = None) -> HfSession:
    """Load `folder` with nothing but transformers, computing in float32 on the CPU.

    float32, since the check is of what the files say: bfloat16 arithmetic differs from machine to
    machine by far more than any mistake that is looked for.

    Raises:
        EngineUnfit: `engine-refused` where transformers cannot load it, or finds tensors missing,
            unexpected or of another shape (it fills such ones with random values and goes on).
    """
    start, before = time.perf_counter(), torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        raw = read_json(folder / "config.json")
        positions = artefact_spec(raw).max_positions
        form = legacy_format(raw)
        net, found = cast(Any, AutoModelForCausalLM).from_pretrained(
            folder,
            **({"config": legacy_config(folder, form)} if form else {}),
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except _LOAD_ERRORS as error:
        torch.set_num_threads(before)
        raise EngineUnfit("engine-refused", str(error).strip()[:2000]) from error
    try:
        _refuse_gaps(found)
    except EngineUnfit:
        torch.set_num_threads(before)
        raise
    seconds = time.perf_counter() - start
    return HfSession(TorchReference(net.eval(), positions, before, seconds))


def _refuse_gaps(found: dict[str, Any]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found.get(kind):
            names = sorted(map(str, found[kind]))
            raise EngineUnfit(
                "engine-refused",
                f"transformers reports {kind.replace('_', ' ')}: {', '.join(names[:3])}",
                expected="every tensor, once",
            )


class HfSession:
    """An artefact folder in transformers, in this process; the torch session runs it."""

    def __init__(self, inner: TorchReference) -> None:
        self._inner = inner

    @property
    def max_tokens(self) -> int:
        """Longest sequence: the config's positions."""
        return self._inner.max_tokens

    def prefill(self, tokens: Sequence[int], *, logits: Literal["all", "last"] = "all") -> F32:
        """As `Session.prefill`.

        Raises:
            EngineUnfit: `engine-refused`.
        """
        try:
            return self._inner.prefill(tokens, logits=logits)
        except UsageError as error:
            raise _refused(error) from error

    def decode(self, token: int) -> F32:
        """As `Session.decode`; errors as `prefill`."""
        try:
            return self._inner.decode(token)
        except UsageError as error:
            raise _refused(error) from error

    def generate(self, tokens: Sequence[int], n: int) -> Generation:
        """As `Session.generate`; errors as `prefill`."""
        try:
            return self._inner.generate(tokens, n)
        except UsageError as error:
            raise _refused(error) from error

    def hidden_states(self, tokens: Sequence[int]) -> dict[str, F32]:
        """As `Target.probe`."""
        return dict(self._inner.hidden_states(tokens))

    def facts(self) -> Facts:
        """Engine "transformers"."""
        return replace(self._inner.facts(), engine="transformers", version=version("transformers"))

    def close(self) -> None:
        """Free the weights."""
        self._inner.close()


def _refused(error: UsageError) -> EngineUnfit:
    return EngineUnfit("engine-refused", error.found, expected=error.expected)
