"""Writes a Llama-shaped Hugging Face folder of random weights, streamed in blocks of rows.

Every value is fresh noise (no block is repeated), so nothing between disk and engine can
profit from equal pages. Values and masks come from two streams of their own per tensor:
a dense model and its sparse twin of one seed agree at every kept position.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from exporter.store.folder import stage
from exporter.store.writer import SafetensorsWriter
from numpy.typing import NDArray

from bench.shapes import Shape
from exporter.contract import Progress
from exporter.errors import UsageError

BLOCK_VALUES = 1 << 22  # 16 MB of float32 at a time
STD = 0.02  # the initializer_range of the Llama configs


def make_random(
    shape: Shape, out: Path, sparsity: float, seed: int, progress: Progress | None = None
) -> int:
    """Write `config.json` and `model.safetensors` (bfloat16) into the new folder `out`.

    Linears of the layers get independent zeros, each with probability `sparsity`; embedding,
    head and norms stay dense. Equal arguments give equal bytes (one numpy version).

    Returns:
        bytes of the weights' values.

    Raises:
        UsageError: `usage`, `output-exists`.
        InputRefused: `output-failed`.
    """
    if not 0.0 <= sparsity < 1.0:
        raise UsageError("usage", f"sparsity {sparsity}", expected="0 <= sparsity < 1")
    layout = shape.layout()
    total, done = shape.parameters * 2, 0
    with stage(out, inputs=[]) as staging:
        writer = SafetensorsWriter(
            staging.path / "model.safetensors", layout=layout, metadata={"format": "pt"}
        )
        for index, (name, _, extents) in enumerate(layout):
            for block in blocks(name, extents, sparsity, (seed, index)):
                writer.write(name, block)
                done += block.nbytes
                if progress is not None:
                    progress(name, done, total)
        writer.close()
        text = json.dumps(shape.config(), indent=2, sort_keys=True) + "\n"
        (staging.path / "config.json").write_text(text, encoding="utf-8")
        staging.publish()
    return done


def blocks(
    name: str, shape: tuple[int, ...], sparsity: float, seed: tuple[int, int]
) -> Iterator[NDArray[np.generic]]:
    """The tensor's rows in order, bfloat16, at most `BLOCK_VALUES` values (or one row) each."""
    if len(shape) == 1:
        yield np.ones(shape, dtype=ml_dtypes.bfloat16)
        return
    values = np.random.default_rng([*seed, 0])
    masks = np.random.default_rng([*seed, 1])
    prune = sparsity > 0 and name.startswith("model.layers.")
    # 16 random bits a position: sparsity is met to 1/65536 and the draw costs little.
    threshold = round(sparsity * 65536)
    step = max(1, BLOCK_VALUES // math.prod(shape[1:]))
    for row in range(0, shape[0], step):
        extents = (min(step, shape[0] - row), *shape[1:])
        block = values.standard_normal(extents, dtype=np.float32)
        block *= np.float32(STD)
        if prune:
            draw = masks.integers(0, 65536, size=extents, dtype=np.uint16)
            block[draw < threshold] = 0.0
        yield block.astype(ml_dtypes.bfloat16)
