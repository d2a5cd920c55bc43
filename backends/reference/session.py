"""The reference as a Session: float32, eager attention, with the key-value cache in use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from backends.reference.build import build_model
from backends.reference.noise import spread
from exporter.contract import Facts, Generation
from exporter.errors import UsageError, VerificationFailed
from exporter.memory import peak_rss_bytes
from exporter.model import FusedModel
from exporter.store.dtypes import F32


def open_reference(model: FusedModel, *, threads: int | None = None) -> TorchReference:
    """The fused model as transformers runs it, in float32 on the CPU.

    Args:
        model: its tensors are read once, row block by row block, and held in float32.
        threads: of torch, for the whole process while the session is open; its default if None.

    Raises:
        InputRefused: the model's tensors are not those of transformers' class (`tensor-*`).
        VerificationFailed: `reference-broken`.
    """
    start = time.perf_counter()
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    net = build_model(model)
    return TorchReference(net, model.spec.max_positions, before, time.perf_counter() - start)


class TorchReference:
    """A `contract.ReferenceSession`. Batch 1; every step checks that the cache really grew."""

    def __init__(
        self, net: torch.nn.Module, max_tokens: int, threads_before: int, load_seconds: float
    ) -> None:
        self._net: Any = net
        self._config: Any = cast(Any, net).config
        self._vocab = int(self._config.vocab_size)
        self._cache: DynamicCache | None = None
        self._max = max_tokens
        self._threads_before = threads_before
        self._load_seconds = load_seconds

    @property
    def max_tokens(self) -> int:
        """Longest sequence: the config's max_position_embeddings."""
        return self._max

    def prefill(self, tokens: Sequence[int], *, logits: Literal["all", "last"] = "all") -> F32:
        """Empty the cache, feed `tokens`; float32 `[T, V]`, or `[1, V]` for "last".

        Raises:
            UsageError: no tokens, too many, or one outside the vocabulary.
            VerificationFailed: `reference-broken` where the cache did not take them up.
        """
        self._cache = DynamicCache(config=self._config)
        return self._feed(tokens, keep=0 if logits == "all" else 1)

    def decode(self, token: int) -> F32:
        """Feed one token after what the cache holds; float32 `[V]`. Errors as `prefill`."""
        if self._cache is None:
            raise UsageError("usage", "decode before prefill")
        return self._feed([token], keep=1)[0]

    def generate(self, tokens: Sequence[int], n: int) -> Generation:
        """`n` greedy tokens after `tokens`, lowest id on equal logits, cached decode, timed."""
        start = time.perf_counter()
        out: list[int] = []
        seconds: list[float] = []
        for step in range(n):
            row = self.decode(out[-1]) if step else self.prefill(tokens, logits="last")[0]
            out.append(int(np.argmax(row)))
            seconds.append(time.perf_counter() - start)
        return Generation(tuple(out), tuple(seconds))

    def hidden_states(self, tokens: Sequence[int]) -> Mapping[str, F32]:
        """Float32 `[T, hidden]` after the embedding, each layer and the final norm, uncached."""
        base = self._open_net().base_model
        modules = _shown(base)
        states: dict[str, F32] = {}
        hooks = [m.register_forward_hook(_keep(states, key)) for key, m in modules.items()]
        try:
            with torch.inference_mode():
                base(input_ids=self._ids(tokens, 0), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return {key: states[key] for key in modules}

    def spread(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """How far float32 rounding alone moves the logits after each token: see `noise.spread`."""
        net = self._open_net()
        layers = {m for key, m in _shown(net.base_model).items() if key.startswith("layer.")}
        return spread(net, self._ids(tokens, 0), layers)

    def facts(self) -> Facts:
        """Engine "torch", its version and threads, and the bytes of its float32 weights."""
        return Facts(
            engine="torch",
            version=str(torch.__version__),
            threads=torch.get_num_threads(),
            ops_share=1.0,
            weight_bytes=sum(p.numel() * p.element_size() for p in self._open_net().parameters()),
            peak_rss_bytes=peak_rss_bytes(),
            load_seconds=self._load_seconds,
            extra={"attention": "eager", "dtype": "float32", "cache": "DynamicCache"},
        )

    def close(self) -> None:
        """Let go of the weights and give torch back its number of threads."""
        if self._net is not None:
            torch.set_num_threads(self._threads_before)
        self._net = None
        self._cache = None

    def _open_net(self) -> Any:
        if self._net is None:
            raise UsageError("usage", "the reference is closed")
        return self._net

    def _ids(self, tokens: Sequence[int], held: int) -> torch.Tensor:
        ids = [int(t) for t in tokens]
        if not ids or held + len(ids) > self._max:
            raise UsageError(
                "usage", f"{len(ids)} tokens after {held}", expected=f"1 to {self._max} in all"
            )
        if min(ids) < 0 or max(ids) >= self._vocab:
            raise UsageError(
                "usage", f"token ids {min(ids)} to {max(ids)}", expected=f"below {self._vocab}"
            )
        return torch.tensor([ids], dtype=torch.long)

    def _feed(self, tokens: Sequence[int], keep: int) -> F32:
        net, cache = self._open_net(), cast(DynamicCache, self._cache)
        held = cache.get_seq_length()
        ids = self._ids(tokens, held)
        with torch.inference_mode():
            out = net(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=keep)
        self._check_cache(out.past_key_values, held + len(tokens))
        return out.logits[0].numpy()

    def _check_cache(self, used: object, length: int) -> None:
        """A forward that ignores its cache still gives plausible logits, so ask the cache."""
        cache = cast(DynamicCache, self._cache)
        layers = int(self._config.num_hidden_layers)
        lengths = {cache.get_seq_length(i) for i in range(layers)}
        if used is not cache or lengths != {length}:
            raise VerificationFailed(
                "reference-broken",
                f"the cache holds {sorted(lengths)} positions in its {layers} layers",
                expected=f"{length} in each",
                hint="This version of transformers treats its cache in another way: report it.",
            )


def _shown(base: Any) -> dict[str, torch.nn.Module]:
    """The modules whose outputs are the states, by the keys of `Target.probe`."""
    if hasattr(base, "wte"):  # GPT-2: `drop` gives tokens and positions together
        first, layers, last = base.drop, base.h, base.ln_f
    else:
        first, layers, last = base.embed_tokens, base.layers, base.norm
    return {"embedding": first, **{f"layer.{i}": x for i, x in enumerate(layers)}, "norm": last}


def _keep(states: dict[str, F32], key: str) -> Callable[..., None]:
    def hook(_module: object, _inputs: object, output: Any) -> None:
        values = output[0] if isinstance(output, tuple) else output
        states[key] = values[0].numpy().copy()

    return hook
