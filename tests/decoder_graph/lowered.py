"""A tiny model and its lowered folder, for the tests beside this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.decoder_graph.lower import lower_decoder
from backends.decoder_graph.options import GraphOptions
from exporter.model import LowRank
from tests.fused import fused_from
from tests.tiny import make_tiny


def lowered(
    folder: Path,
    kind: str = "llama3",
    *,
    io: Any = "deepsparse",
    sequence_length: int | None = None,
    branches: Mapping[str, LowRank] | None = None,
    **tiny: Any,
) -> tuple[Any, Path]:
    """`(transformers model, folder with model.onnx and model.data)`."""
    model = make_tiny(kind, **tiny)
    folder.mkdir(parents=True, exist_ok=True)
    options = GraphOptions(io=io, sequence_length=sequence_length)
    lower_decoder(fused_from(model, branches=branches), folder, options)
    return model, folder


def tokens_of(count: int, seed: int = 0) -> list[int]:
    """Random token ids of the tiny vocabulary."""
    return [int(t) for t in np.random.default_rng(seed).integers(3, 272, count)]


def reference_logits(model: Any, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Float32 `[T, V]` of transformers, without a cache."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0].numpy()


def reference_greedy(model: Any, tokens: Sequence[int], n: int) -> list[int]:
    """Greedy tokens of transformers' generate, with its cache, without a stop token."""
    import torch

    ids = torch.tensor([list(tokens)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(tokens) :].tolist()


def relative(values: NDArray[np.float32], wanted: NDArray[Any]) -> float:
    """`max|a - b| / max|b|`."""
    return float(np.abs(values - wanted).max() / np.abs(wanted).max())
