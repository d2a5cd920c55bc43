"""Writes a Llama-shaped Hugging Face folder of random weights, streamed in blocks of rows.

Every value is fresh noise (no block is repeated), so nothing between disk and engine can
profit from equal pages. Values and masks come from two streams of their own per tensor:
a dense model and its sparse twin of one seed agree at every kept position.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import NormalDist

import ml_dtypes
import numpy as np
from numpy.random import SFC64, Generator
from numpy.typing import NDArray

from bench.shapes import Shape
from exporter.contract import Progress
from exporter.errors import UsageError
from exporter.store.folder import stage
from exporter.store.writer import SafetensorsWriter

BLOCK_VALUES = 1 << 22  # 8 MB of bfloat16 at a time
LEVELS = 1 << 16  # sparsity is met to one part in this
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
    values, masks = (Generator(SFC64([*seed, stream])) for stream in (0, 1))
    prune = sparsity > 0 and name.startswith("model.layers.")
    threshold = round(sparsity * LEVELS)
    step = max(1, BLOCK_VALUES // math.prod(shape[1:]))
    for row in range(0, shape[0], step):
        extents = (min(step, shape[0] - row), *shape[1:])
        bits = normal_bits()[values.integers(0, LEVELS, size=extents, dtype=np.uint16)]
        if prune:
            bits *= masks.integers(0, LEVELS, size=extents, dtype=np.uint16) >= threshold
        yield bits.view(ml_dtypes.bfloat16)


@cache
def normal_bits() -> NDArray[np.uint16]:
    """The bfloat16 bits of 65,536 equally likely values of a normal distribution, `[65536]`.

    Drawing an index of 16 bits and looking it up is several times faster than drawing floats
    and rounding them, and the largest model has 4e9 of them.
    """
    normal = NormalDist(0.0, STD)
    quantiles = [normal.inv_cdf((i + 0.5) / LEVELS) for i in range(LEVELS)]
    return np.array(quantiles, dtype=np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
