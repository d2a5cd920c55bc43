"""A decoder in DeepSparse: one engine for one token, one for a chunk of the prompt, one cache.

The same steps as DeepSparse's own pipeline (1.8.0,
deepsparse/transformers/pipelines/text_generation: nl_engine_operator, kv_cache_operator,
multi_engine_prefill_operator, autoregressive_preprocess_operator), without its tokenizer and
with the logits of all prompt positions: whole chunks first, the rest token by token.
"""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from typing import Any

import numpy as np

from backends.process.serve import Unfit, greedy

# As the pipeline sets it, before the engine's library is loaded.
os.environ.setdefault("WAND_OPT_FLAGS", "default,~pyramids")

CACHE_PREFIX = "past_key_values"


class Decoder:
    """Batch 1, `length` positions, prompts in chunks of `chunk`, cache "internal" or "external".

    Raises:
        Unfit: `engine-unfit` for numpy 2, `engine-refused` for what the engine cannot compile.
    """

    def __init__(
        self, folder: str, work: str, length: int, chunk: int, cache: str, threads: int | None
    ) -> None:
        if int(np.__version__.split(".")[0]) >= 2:
            raise Unfit("engine-unfit", f"numpy {np.__version__} in DeepSparse's environment")
        deepsparse: Any = import_module("deepsparse")
        self._length = length
        self._internal = cache == "internal"
        # The engine's own cache answers wrongly once its last place is taken (measured).
        self.max_tokens = length - 1 if self._internal else length
        self._version = deepsparse.__version__
        self._lib = deepsparse.engine.LIB
        self._engine = deepsparse.Engine
        self._utilities: Any = import_module("deepsparse.utils.onnx")
        self._arch = deepsparse.cpu.cpu_architecture()
        self._file_bytes = link_data(folder, work)
        self._engines: dict[int, Any] = {}
        for width in sorted({1, chunk}):
            self._engines[width] = self._compile(folder, work, width, threads)
        self._chunk = chunk
        one = self._engines[1]
        self._vocab = one.output_shapes[0][-1]
        self._past: list[str] = [n for n in one.input_names if n.startswith(CACHE_PREFIX)]
        shape = one.input_shapes[one.input_names.index(self._past[0])]
        self._heads, self._head_dim = shape[1], shape[3]
        self._reset()

    def prefill(self, tokens: list[int], *, logits: str) -> Any:
        """Float32 logits `[T, V]`, or `[1, V]` for "last"."""
        self._check(tokens, 0)
        self._reset()
        rows: list[Any] = []
        while self._done < len(tokens):
            left = len(tokens) - self._done
            width = self._chunk if left >= self._chunk else 1
            out = self._step(tokens[self._done : self._done + width])
            if logits == "all" or width == left:
                rows.append(out)
        return np.concatenate(rows) if logits == "all" else rows[-1][-1:]

    def decode(self, token: int) -> Any:
        """Float32 logits `[V]`."""
        self._check([token], self._done)
        return self._step([token])[0]

    def generate(self, tokens: list[int], n: int) -> tuple[list[int], list[float]]:
        """Greedy tokens and their times."""
        return greedy(self, tokens, n)

    def facts(self) -> dict[str, Any]:
        """What `backends.base.Facts` holds, but for memory and load time."""
        shares = [engine.fraction_of_supported_ops for engine in self._engines.values()]
        return {
            "engine": "deepsparse",
            "version": self._version,
            "threads": self._engines[1].num_cores,
            "ops_share": min(shares),
            "weight_bytes": 0,  # it packs zeros away inside, and does not tell what a step reads
            "extra": {
                "file_bytes": self._file_bytes,
                "isa": self._arch.isa + ("_vnni" if self._arch.vnni else ""),
                "cache": "internal" if self._internal else "external",
                "prefill_chunk": self._chunk,
                "sequence_length": self._length,
                "numpy": np.__version__,
            },
        }

    def close(self) -> None:
        """Drop the engines."""
        self._engines.clear()

    def _compile(self, folder: str, work: str, width: int, threads: int | None) -> Any:
        path = os.path.join(work, f"width_{width}.onnx")
        shutil.copyfile(os.path.join(folder, "model.onnx"), path)
        _, cached, _ = self._utilities.overwrite_onnx_model_inputs_for_kv_cache_models(
            path, sequence_length=self._length, input_ids_length=width
        )
        if not any(cached):
            raise Unfit("engine-refused", "model.onnx has no cache outputs (present.*)")
        kept = cached if self._internal else None
        return self._engine(path, batch_size=1, num_cores=threads, cached_outputs=kept)

    def _reset(self) -> None:
        self._done = 0
        if self._internal:
            self._cache = self._lib.kv_cache(0, 0)  # tokens so far, tokens never dropped
        else:
            shape = (1, self._heads, self._length, self._head_dim)
            self._state = {name: np.zeros(shape, np.float32) for name in self._past}

    def _check(self, tokens: list[int], held: int) -> None:
        if not tokens or min(tokens) < 0 or max(tokens) >= self._vocab:
            raise Unfit("engine-refused", f"token ids must lie in 0..{self._vocab - 1}")
        if held + len(tokens) > self.max_tokens:
            text = f"{held + len(tokens)} tokens in an artefact for {self.max_tokens}"
            raise Unfit("engine-refused", text)

    def _step(self, tokens: list[int]) -> Any:
        engine = self._engines[len(tokens)]
        inputs = step_inputs(tokens, self._done, self._length)
        past = self._length - len(tokens)
        if self._internal:
            # The engine keeps the cache; it wants the inputs all the same, empty.
            nothing = np.zeros((0, self._heads, past, self._head_dim), np.float32)
            inputs.update((name, nothing) for name in self._past)
            arrays = [inputs[name] for name in engine.input_names]
            out = engine._eng_net.execute_list_out(arrays, self._cache)
        else:
            for name in self._past:
                inputs[name] = np.ascontiguousarray(self._state[name][:, :, len(tokens) :])
            out = engine.run([inputs[name] for name in engine.input_names])
            for index, name in enumerate(self._past):  # outputs in the order of the inputs
                self._state[name] = out[1 + index]
        self._done += len(tokens)
        return np.array(out[0][0], dtype=np.float32)


def step_inputs(tokens: list[int], done: int, length: int) -> dict[str, Any]:
    """Inputs of one step but for the cache: the window's right end holds the newest tokens."""
    width = len(tokens)
    attention = np.zeros((1, length), np.int64)
    attention[0, length - done - width :] = 1
    causal = np.zeros((1, 1, width, length), np.int64)
    for row in range(width):
        causal[0, 0, row, length - done - width : length - width + row + 1] = 1
    return {
        "input_ids": np.array([tokens], np.int64),
        "attention_mask": attention,
        "positions": np.arange(done, done + width, dtype=np.int64)[None],
        "causal_mask": causal,
    }


def link_data(folder: str, work: str) -> int:
    """Make the external data of model.onnx visible in `work`; its bytes."""
    onnx: Any = import_module("onnx")
    external: Any = import_module("onnx.external_data_helper")
    graph = onnx.load(os.path.join(folder, "model.onnx"), load_external_data=False).graph
    names = {external.ExternalDataInfo(t).location for t in graph.initializer if t.external_data}
    total = sum(len(t.raw_data) for t in graph.initializer)
    for name in sorted(names):
        source = os.path.join(os.path.abspath(folder), name)
        if os.path.basename(name) != name or not os.path.isfile(source):
            raise Unfit("engine-refused", f"model.onnx names the data file {name!r}")
        os.symlink(source, os.path.join(work, name))
        total += os.path.getsize(source)
    return total
