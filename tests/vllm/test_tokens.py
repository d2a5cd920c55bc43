"""Packed folders give, token for token, what dense folders of the same weights give.

All engines of this file run one after the other in one process, on first use.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny
from tests.vllm.conftest import RunInVllm
from tests.vllm.packing import How, linears, nm, pack_pair

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
PROGRAM = Path(__file__).parent / "programs" / "tokens.py"

# vLLM's attention on a CPU takes heads of 32 and more.
SIZES: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
DENSE = {"SPARSE_EXPORT_EXECUTE": "dense"}
LOW = {"SPARSE_EXPORT_MEMORY": "low", **DENSE}
SPARSE = {"SPARSE_EXPORT_EXECUTE": "sparse"}


def everywhere(how: How) -> dict[str, How]:
    return {name: how for layer in range(2) for name in linears(layer)}


def mixed() -> dict[str, How]:
    """In one fused layer: N:M beside ragged, packed dense, and a module that is not packed."""
    q, k, v, o, gate, up, down = linears(0)
    first = {q: nm(2, 4), k: How(values="int8"), o: How(values="int4", group=128)}
    first |= {gate: How(kind="dense"), up: How(), down: nm(4, 8, "fp8")}
    shapes = [nm(2, 4), nm(4, 8), nm(2, 8), nm(1, 4), nm(1, 8), nm(2, 16), nm(3, 4)]
    assert v not in first
    return first | dict(zip(linears(1), shapes, strict=True))


def experts(below: str, names: tuple[str, str, str], layers: int) -> dict[str, How]:
    """Two of three experts packed, each matrix in another way; attention ragged."""
    found: dict[str, How] = {}
    for layer in range(layers):
        for expert, hows in enumerate([(How(), nm(2, 4), How(values="int8")), (nm(1, 4),) * 3]):
            for name, how in zip(names, hows, strict=True):
                found[f"model.layers.{layer}.{below}.experts.{expert}.{name}"] = how
        found |= {name: How() for name in linears(layer)[:4]}
    return found


CASES: dict[str, tuple[str, dict[str, Any], dict[str, How]]] = {
    "2:4": ("llama2", {}, everywhere(nm(2, 4))),
    "2:8": ("mistral", {}, everywhere(nm(2, 8))),
    "unstructured": ("llama2", {"bias": True}, everywhere(How(density=0.3))),
    "int8": ("qwen2", {}, everywhere(How(values="int8", density=0.3))),
    "mixed": ("llama3", {"bias": True}, mixed()),  # a tied head, too
    "mixtral": ("mixtral", {}, experts("block_sparse_moe", ("w1", "w2", "w3"), 2)),
    "qwen3_moe": (
        "qwen3_moe",
        {"head_dim": 32},
        {
            **experts("mlp", ("gate_proj", "down_proj", "up_proj"), 1),
            **{name: How() for name in linears(1)[4:]},  # its second layer has no experts
        },
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By case: packed and dense."""
    found: dict[str, tuple[Path, Path]] = {}
    for case, (kind, options, how) in CASES.items():
        where = tmp_path_factory.mktemp("pair")
        model = save_tiny(kind, where / "model", dtype="bfloat16", **SIZES, **options)
        found[case] = pack_pair(model, where, how)
    return found


@pytest.fixture(scope="module")
def tokens(folders: dict[str, tuple[Path, Path]], run_in_vllm: RunInVllm) -> dict[str, Any]:
    jobs: dict[str, dict[str, Any]] = {}
    for case, (packed, dense) in folders.items():
        jobs[f"{case} packed"] = {"folder": str(packed), "env": DENSE}
        jobs[f"{case} dense"] = {"folder": str(dense)}
    jobs["mixed low"] = {"folder": str(folders["mixed"][0]), "env": LOW}
    for name, (folder, env) in zip(("packed", "dense"), ((0, SPARSE), (1, {})), strict=True):
        # In float32: sums in another order do not choose another token.
        job = {"folder": str(folders["unstructured"][folder]), "env": env, "dtype": "float32"}
        jobs[f"sparse {name}"] = job
    jobs["dummy"] = {"folder": str(folders["mixed"][0]), "load_format": "dummy"}
    jobs["dummy low"] = {**jobs["dummy"], "env": LOW}
    jobs["dummy experts"] = {"folder": str(folders["mixtral"][0]), "load_format": "dummy"}
    made = run_in_vllm(PROGRAM, json.dumps(list(jobs.values())), timeout=800)
    return dict(zip(jobs, made, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_the_dense_folder(case: str, tokens: dict[str, Any]) -> None:
    assert tokens[f"{case} packed"] == tokens[f"{case} dense"]
    first = tokens[f"{case} packed"][0]
    assert len(first) == 24 and len(set(first)) > 3, "a loop would test little"


def test_low_memory_gives_the_same(tokens: dict[str, Any]) -> None:
    assert tokens["mixed low"] == tokens["mixed dense"]


def test_the_kernels_give_the_same(tokens: dict[str, Any]) -> None:
    """A fused layer in one call, with biases, prompts and single rows."""
    assert tokens["sparse packed"] == tokens["sparse dense"]
    assert [len(made) for made in tokens["sparse packed"]] == [24, 24, 24]


@pytest.mark.parametrize("how", ["dummy", "dummy low", "dummy experts"])
def test_random_weights_load_and_run(how: str, tokens: dict[str, Any]) -> None:
    assert [len(made) for made in tokens[how]] == [24, 24, 24]
