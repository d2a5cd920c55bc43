"""Scoring by a torch model of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from exporter.contract import Tokens
from harness.evaluate.perplexity import F64, Scorer

ROWS = 256  # of logits whose log-softmax is taken at once: the vocabulary makes them wide


def scorer(model: Any) -> Scorer:
    """Score by `model(input_ids).logits`, whatever wraps it; its mode and type stay.

    Memory: the logits of one window in the model's type, and `ROWS` of them in float64.
    """

    def score(ids: Tokens) -> F64:
        tokens = torch.from_numpy(ids)[None].to(next(model.parameters()).device)
        with torch.inference_mode():
            logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
            parts = [
                functional.cross_entropy(
                    logits[i : i + ROWS].double(), tokens[0, 1 + i : 1 + i + ROWS], reduction="none"
                )
                for i in range(0, len(logits), ROWS)
            ]
        return torch.cat(parts).cpu().numpy()

    return score
