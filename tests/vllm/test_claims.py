"""Which checkpoints the plugin takes, and that no other checkpoint can make it raise."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.vllm.plugin.claims import claims

OURS = {"quant_method": "sparse-export", "format": "packed", "version": 1}
SPARSITY = {"format": "sparse-24-bitmask", "sparsity_structure": "2:4", "targets": ["Linear"]}
LEGACY = {"quant_method": "compressed-tensors", "sparsity_config": SPARSITY}
OTHERS: list[Any] = [
    None,
    "fp8",
    [],
    {},
    {"quant_method": "fp8"},
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": 7},
    {"quant_method": "compressed-tensors"},
    {"quant_method": "compressed-tensors", "sparsity_config": None},
    {"quant_method": "compressed-tensors", "sparsity_config": "sparse-24-bitmask"},
    {"quant_method": "compressed-tensors", "sparsity_config": {"format": "dense"}},
    {"quant_method": "compressed-tensors", "sparsity_config": {"format": ["sparse-24-bitmask"]}},
    # Sparse and quantised: vLLM's own method reads the scales, ours would not.
    {**LEGACY, "config_groups": {"group_0": {}}},
    {"quant_method": "gptq", "sparsity_config": SPARSITY},
]


@pytest.mark.parametrize("asked", [None, "sparse-export"])
def test_ours_is_claimed(asked: str | None) -> None:
    assert claims(OURS, asked)


@pytest.mark.parametrize("form", ["sparse-24-bitmask", "sparse-bitmask"])
def test_legacy_is_claimed(form: str) -> None:
    assert claims({**LEGACY, "sparsity_config": {**SPARSITY, "format": form}})


def test_legacy_stored_under_the_older_key_has_no_method() -> None:
    assert claims({"sparsity_config": SPARSITY})


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_others_are_left_alone(other: Any) -> None:
    assert not claims(other)


@pytest.mark.parametrize("asked", ["fp8", "gptq", 7])
def test_what_the_user_asks_for_is_left_alone(asked: object) -> None:
    assert not claims(OURS, asked)
    assert not claims(LEGACY, asked)


def test_asking_for_compressed_tensors_does_not_take_ours() -> None:
    assert claims(LEGACY, "compressed-tensors")
    assert not claims(OURS, "compressed-tensors")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["quant_method", "sparsity_config", "config_groups"]), _json)
)
def test_no_config_raises(config: dict[str, Any]) -> None:
    assert claims(config) in (True, False)
