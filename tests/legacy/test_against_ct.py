"""Our files and those of compressed-tensors 0.14.0.1: the same bytes, each read by the other."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from backends.vllm.legacy.decode import decode_bitmask
from backends.vllm.legacy.encode import encode_two_four
from backends.vllm.legacy.read_back import read_back
from exporter.arch.spec import artefact_spec
from exporter.contract import StoredTensor
from exporter.store.dtypes import to_float32
from tests.legacy.conftest import fused, two_four, written
from tests.legacy.write_ct import read_ct, write_ct


def tensors(folder: Path) -> dict[str, Any]:
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def modules(found: dict[str, Any]) -> list[str]:
    return sorted(n.removesuffix(".bitmask") for n in found if n.endswith(".bitmask"))


def same(got: Any, want: Any) -> bool:
    return (got.dtype, got.shape, got.tobytes()) == (want.dtype, want.shape, want.tobytes())


def test_same_bytes_in_every_tensor(ours: Path, theirs: Path) -> None:
    got, want = tensors(ours), tensors(theirs)
    assert got.keys() == want.keys() and len(modules(got)) == 14
    assert [name for name in got if not same(got[name], want[name])] == []


def test_same_quantization_config_but_the_share_of_zeros(ours: Path, theirs: Path) -> None:
    got, want = config(ours), config(theirs)
    share = got["quantization_config"]["sparsity_config"].pop("global_sparsity")
    assert want["quantization_config"]["sparsity_config"].pop("global_sparsity") == 0.0
    assert got["quantization_config"] == want["quantization_config"]
    assert 0.3 < share < 0.5
    assert artefact_spec(got).tensors() == artefact_spec(want).tensors()


def test_they_read_ours(ours: Path, dense: Path, tmp_path: Path) -> None:
    got, want = load_file(read_ct(ours, tmp_path / "read")), tensors(dense)
    weights = [f"{module}.weight" for module in modules(tensors(ours))]
    assert all(same(got[name], want[name]) for name in weights) and len(weights) == 14


def test_we_read_theirs(theirs: Path, dense: Path) -> None:
    want = tensors(dense)
    found: dict[str, StoredTensor] = {t.name: t for t in read_back(theirs)}
    assert found.keys() == want.keys()
    for name, stored in found.items():
        half = stored.shape[0] // 2
        rows = np.concatenate([stored.rows(0, half), stored.rows(half, stored.shape[0])])
        assert same(rows, to_float32(want[name])), name
    linear = found["model.layers.0.mlp.up_proj.weight"]
    assert linear.packing is not None and linear.packing.kind == "2:4"
    assert linear.nbytes * 16 == linear.shape[0] * linear.shape[1] * 18 + 16 * 16


def test_unstructured_ones_are_read(tmp_path: Path) -> None:
    dense = two_four(tmp_path / "m", num_hidden_layers=1)
    values = tensors(dense)
    name = "model.layers.0.mlp.gate_proj.weight"
    values[name][3] = 0  # a row without values
    values[name][4, :6] = [-0.0, 1, 2, 3, 4, 5]
    save_file(values, dense / "model.safetensors", {"format": "pt"})
    found = tensors(write_ct(dense, tmp_path / "out", "sparse-bitmask"))
    assert len(modules(found)) == 7
    for module in modules(found):
        parts = [found[f"{module}.{p}"] for p in ("compressed", "bitmask", "shape", "row_offsets")]
        want = values[f"{module}.weight"]
        want[want == 0] = 0  # -0.0 is not kept
        assert same(decode_bitmask(*parts), want), module


@pytest.mark.parametrize("kind", ["llama2", "qwen2", "qwen3"])
def test_ties_biases_and_shards(kind: str, tmp_path: Path) -> None:
    dense = two_four(tmp_path / "m", kind, num_hidden_layers=1)
    got = tensors(written(fused(dense), tmp_path / "ours", shard_bytes=30_000))
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == got.keys()
    assert len(set(index["weight_map"].values())) > 2
    want = tensors(write_ct(dense, tmp_path / "theirs"))
    assert got.keys() == want.keys()
    assert [name for name in got if not same(got[name], want[name])] == []
    back = {t.name: t for t in read_back(tmp_path / "ours")}
    assert back.keys() == tensors(dense).keys()


def test_every_group_there_is_picks_as_they_pick(tmp_path: Path) -> None:
    """All ways to keep two or fewer of four, in both halves of a byte, through a whole model."""
    patterns = [p for p in itertools.product((0, 1), repeat=4) if sum(p) <= 2]
    rows = [np.tile([*a, *b], 8) for a, b in itertools.product(patterns, repeat=2)]
    values = np.array(rows[:120], ml_dtypes.bfloat16) * ml_dtypes.bfloat16(-1.5)
    dense = two_four(tmp_path / "m", "llama2", num_hidden_layers=1, intermediate_size=120)
    stored = tensors(dense)
    stored["model.layers.0.mlp.up_proj.weight"] = values
    save_file(stored, dense / "model.safetensors", {"format": "pt"})
    want = tensors(write_ct(dense, tmp_path / "theirs"))
    compressed, bitmask = encode_two_four(values, tensor="t")
    assert same(bitmask, want["model.layers.0.mlp.up_proj.bitmask"])
    # -1.5 * 0 is -0.0, which they keep and we do not write.
    theirs = want["model.layers.0.mlp.up_proj.compressed"]
    assert np.array_equal(compressed, theirs) and not same(compressed, theirs)
    assert not np.signbit(compressed[compressed == 0]).any()
