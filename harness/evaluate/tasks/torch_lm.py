"""lm-eval's own transformers model, told how far it is and stopped at the first NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM

from harness.evaluate.tasks.limits import Request, Watch, require_finite

_Base: Any = HFLM  # its decorator hides its type


class TorchLM(_Base):
    """`HFLM` over a model that is loaded already; its mode, type and place stay."""

    def __init__(self, model: Any, tokenizer: Any, watch: Watch, batch: int) -> None:
        self._watch = watch
        super().__init__(
            pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=watch.longest,
            backend="causal",
        )  # fmt: skip

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As `HFLM` does, without its bar: the run has one."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: Any = None
    ) -> list[tuple[float, bool]]:
        self._watch.begin(requests)
        self._watch.count_cut(requests)
        found = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        require_finite(value for value, _ in found)
        return found

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """As `HFLM` does; the prompts that are cut are counted."""
        self._watch.begin(requests)
        for request in requests:
            prompt, wanted = request.args
            room = self._watch.room(wanted.get("max_gen_toks", self.max_gen_toks))
            self._watch.cut += len(self.tok_encode(prompt)) > room
        return super().generate_until(requests, disable_tqdm=True)

    def _model_call(self, inps: Any, *args: Any, **options: Any) -> Any:
        out = super()._model_call(inps, *args, **options)
        self._watch.step(len(inps), "answers")
        return out

    def _model_generate(self, context: Any, *args: Any, **options: Any) -> Any:
        out = super()._model_generate(context, *args, **options)
        self._watch.step(len(context), "texts")
        return out
