"""Rotary tables against transformers' own rotary embedding, for every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exporter.arch.rope import half_tables, inverse_frequencies, rope_tables
from exporter.arch.spec import load_spec
from tests.tiny import tiny_config

LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CASES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {**LLAMA3, "original_max_position_embeddings": 64},
    {**LLAMA3, "original_max_position_embeddings": 8192, "factor": 8.0},
    YARN,
    {**YARN, "attention_factor": 1.25},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4},
    {**YARN, "truncate": False, "beta_fast": 16, "beta_slow": 2},
    {**YARN, "factor": None},
    {**YARN, "factor": 0.5},
]


@pytest.mark.parametrize("rope", CASES, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("head_dim", [24, 64, 128])
def test_tables_are_those_of_transformers(rope: dict[str, Any], theta: float, head_dim: int):
    import torch
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = tiny_config("llama2", head_dim=head_dim, rope_parameters={**rope, "rope_theta": theta})
    theirs = LlamaRotaryEmbedding(config)
    count = 512
    cos, sin = theirs(torch.zeros(1), torch.arange(count)[None])
    spec = load_spec({**config.to_dict(), "architectures": None})
    ours = rope_tables(spec, count)
    frequencies, _ = inverse_frequencies(spec.rope, head_dim)
    # Equal but for one unit in the last place of a frequency (torch's pow), times the position.
    slack = np.arange(count)[:, None] * np.tile(frequencies, 2)[None] * 2.0**-22
    for table, want in zip(ours, (cos[0].numpy(), sin[0].numpy()), strict=True):
        assert table.dtype == np.float32 and table.shape == (count, head_dim)
        assert np.all(np.abs(table - want) <= 1e-6 + slack)
    unequal = frequencies != theirs.inv_freq.numpy()
    assert unequal.mean() <= 0.1


def test_tables_are_right_by_definition():
    spec = load_spec({**tiny_config("llama2").to_dict(), "architectures": None})
    cos, sin = half_tables(spec, 64)
    for position in (0, 1, 63):
        for pair in range(spec.head_dim // 2):
            angle = position * 10000.0 ** (-2 * pair / spec.head_dim)
            assert cos[position, pair] == pytest.approx(np.cos(angle), abs=1e-5)
            assert sin[position, pair] == pytest.approx(np.sin(angle), abs=1e-5)
