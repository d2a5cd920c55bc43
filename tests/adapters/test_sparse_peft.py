"""SparsePEFT: masked by the base's own zeros; LoRS's swapped names; elastic super-adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.adapters.base import Adapter
from exporter.errors import InputRefused
from exporter.merge.fuse import fuse
from tests.adapters.forge import (
    factors,
    read,
    simple_lora,
    spec_of,
    targeted,
    tensors_of,
    write_lora,
)
from tests.merge.world import make_model
from tests.merge.world import tensors_of as weights_of

SCALE = 8 / 4  # forge's alpha over its rank


def swapped(pairs: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Tensors as LoRS's code calls them: lora_A is `[out, r]`."""
    return tensors_of({m: (b, a) for m, (a, b) in pairs.items()})


def merged(adapter: Adapter, module: str) -> tuple[Any, Any]:
    """W and W' of one module of a half-sparse model."""
    checked = make_model(0.5)
    fused = fuse(checked, [(adapter, 1.0)])
    tensor = fused.tensors[f"{module}.weight"]
    return weights_of(checked)[f"{module}.weight"], tensor.rows(0, tensor.shape[0])


@pytest.mark.parametrize("names", [tensors_of, swapped], ids=["peft", "lors"])
def test_equals_the_masked_product(tmp_path: Path, names: Any):
    spec = spec_of()
    pairs = factors(spec, targeted(spec, "q", "down"))
    folder = write_lora(
        tmp_path / "a", names(pairs), target_modules=["q_proj", "down_proj"], sparse_adapter=True
    )
    adapter = read(folder)
    assert adapter.masked
    for module, (a, b) in pairs.items():
        before, after = merged(adapter, module)
        product = SCALE * b.astype(np.float64) @ a.astype(np.float64)
        want = before + np.where(before != 0, product, 0.0)
        assert np.abs(after - want).max() <= 1e-6 * np.abs(want).max()
        assert not after[before == 0].any()


def test_swapped_names_without_the_option_are_refused(tmp_path: Path):
    """A dense merge of a masked adapter would fill the zeros."""
    spec = spec_of()
    tensors = swapped(factors(spec, targeted(spec, "q", "v")))
    with pytest.raises(InputRefused) as caught:
        read(write_lora(tmp_path / "a", tensors))
    assert caught.value.code == "adapter-shape"
    assert "sparse_adapter" in str(caught.value.hint)


def test_one_module_swapped_is_refused(tmp_path: Path):
    spec = spec_of()
    pairs = factors(spec, targeted(spec, "q", "v"))
    one = next(iter(pairs))
    tensors = tensors_of(pairs) | swapped({one: pairs[one]})
    with pytest.raises(InputRefused) as caught:
        read(write_lora(tmp_path / "a", tensors, sparse_adapter=True))
    assert caught.value.code == "adapter-shape"


def test_an_elastic_adapter_is_refused(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of(), sparse_adapter=True)
    (folder / "elastic_adapter_config.json").write_text("[]")
    with pytest.raises(InputRefused) as caught:
        read(folder)
    assert (caught.value.code, caught.value.file) == (
        "adapter-option",
        "a/elastic_adapter_config.json",
    )


def test_an_embedding_is_refused(tmp_path: Path):
    """SQFT masks linears; what it does to an embedding is not known."""
    tensors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((4, 40), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.ones((16, 4), np.float32),
    }
    folder = write_lora(
        tmp_path / "a", tensors, sparse_adapter=True, target_modules=["embed_tokens"]
    )
    with pytest.raises(InputRefused) as caught:
        read(folder)
    assert caught.value.code == "adapter-option"
