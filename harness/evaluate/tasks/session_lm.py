"""lm-eval's model interface over a `Session`: an exported artefact answers in its own engine.

Tokenising follows lm-eval's `HFLM`, so that both see the same ids. A request is one prefill;
requests that read the same ids and differ in the last one (answers of one token) share it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from exporter.contract import Session
from harness.evaluate.perplexity import nats_of_rows
from harness.evaluate.tasks.limits import MAX_NEW, Request, Watch, require_finite

Scored = tuple[float, bool]  # log-likelihood in nats, whether greedy decoding gives it


class SessionLM(TemplateLM):
    """A session and its tokenizer, for `lm_eval.evaluator.evaluate`. Greedy, batch 1."""

    def __init__(self, session: Session, tokenizer: Any, watch: Watch) -> None:
        super().__init__()
        self._session, self.tokenizer, self._watch = session, tokenizer, watch

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a text, with the tokenizer's own special tokens where it is not said."""
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        start = self.tokenizer.decode(self.prefix_token_id)
        if add_special_tokens is None and has_bos_prefix(string, start):
            given = {"add_special_tokens": False}
        return list(self.tokenizer.encode(string, **given))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[Scored]:
        """Log-likelihood of answers after their contexts; no bar of lm-eval's: the run has one."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[Scored]:
        self._watch.begin(requests)
        self._watch.count_cut(requests)
        found: list[Scored] = [(0.0, True)] * len(requests)
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, (_key, context, answer) in enumerate(requests):
            if answer:
                alike[tuple([*context, *answer][-(self._watch.longest + 1) :][:-1])].append(index)
        for read, indices in alike.items():
            answers = [requests[i][2] for i in indices]
            short = all(len(answer) == 1 for answer in answers)
            rows = self._session.prefill(read, logits="last" if short else "all")
            for index, answer in zip(indices, answers, strict=True):
                ids = np.asarray(answer[-len(read) :], np.int64)
                mine = rows[-len(ids) :]
                nats = float(nats_of_rows(mine, ids).sum())
                found[index] = (-nats, bool(np.array_equal(mine.argmax(axis=1), ids)))
            self._watch.step(len(indices), "answers")
        require_finite(value for value, _ in found)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of what the model reads."""
        totals: list[float] = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._watch.longest,
                context_len=1,
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            scored = self._loglikelihood_tokens(cast(list[Request], pairs))
            totals.append(sum(value for value, _ in scored))
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Greedy text after each prompt, until a stop text, the end token, or the task's number."""
        self._watch.begin(requests)
        found: list[str] = []
        for request in requests:
            prompt, wanted = request.args
            found.append(self._answer(prompt, cast(dict[str, Any], wanted)))
            self._watch.step(1, "texts")
        return found

    def _answer(self, prompt: str, wanted: dict[str, Any]) -> str:
        options = cast(dict[str, Any], normalize_gen_kwargs(wanted, MAX_NEW))
        end = self.tokenizer.decode(self.eot_token_id)
        stops = handle_stop_sequences(options["until"], eos=end)
        room = self._watch.room(options["max_gen_toks"])
        ids = self.tok_encode(prompt)
        self._watch.cut += len(ids) > room
        row = self._session.prefill(ids[-room:], logits="last")[0]
        new: list[int] = []
        while True:
            require_finite([float(row.max())])
            new.append(int(row.argmax()))
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            ended = new[-1] == self.eot_token_id or len(new) == options["max_gen_toks"]
            if ended or any(stop and stop in text for stop in stops):
                return postprocess_generated_text(text, stops, None)
            row = self._session.decode(new[-1])
