"""Hidden states of a written artefact: its own graph with more outputs, its own data file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends.decoder_graph.variants import probe_variant
from backends.onnxruntime.session import ORT_ERRORS, default_threads, feeds, load, refused
from exporter.store.dtypes import F32


def probe(folder: Path, tokens: Sequence[int]) -> dict[str, F32]:
    """Float32 `[T, hidden]` by the keys of `Target.probe`, for `tokens` on an empty cache.

    Raises:
        EngineUnfit: `engine-refused`.
    """
    model, shown = probe_variant(folder / "model.onnx")
    io = "optimum" if any(v.name == "position_ids" for v in model.graph.input) else "deepsparse"
    session: Any = load(model.SerializeToString(), folder, default_threads())
    arrays = feeds(io, tokens, 0)
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            _, heads, _, size = value.shape
            arrays[value.name] = np.empty((1, heads, 0, size), np.float32)
    try:
        states = session.run(list(shown.values()), arrays)
    except ORT_ERRORS as error:
        raise refused(error) from error
    return {key: state[0] for key, state in zip(shown, states, strict=True)}
