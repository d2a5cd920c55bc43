"""The LoSA bundle: written, read back, and every way in which it can lose its meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exporter.adapters.base import BaseIdentity
from exporter.adapters.losa import write_losa
from exporter.errors import InputRefused, UsageError
from tests.adapters.forge import (
    DIGEST,
    PREFIX,
    factors,
    mend_json,
    random_masks,
    read,
    spec_of,
    targeted,
)

SPEC = spec_of()
Q0, Q1 = targeted(SPEC, "q")
DOWN0 = targeted(SPEC, "down")[0]
PAIRS = factors(SPEC, [Q0], 2) | factors(SPEC, [Q1], 5) | factors(SPEC, [DOWN0], 3)
MASKS = random_masks(SPEC, [Q0, Q1, DOWN0])


def bundle(folder: Path, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "base_name": "tiny-base",
        "base_sha256": DIGEST,
        "factors": PAIRS,
        "masks": MASKS,
        "alpha": 16,
        "r_ref": 8,
        "facts": {"T": 5, "schedule": "cubic", "s_final": 0.5, "seed": 4},
        **changes,
    }
    write_losa(folder, **arguments)
    return folder


def refusal(folder: Path, **kwargs: Any) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        read(folder, **kwargs)
    return caught.value


def test_round_trip(tmp_path: Path):
    adapter = read(bundle(tmp_path / "b"))
    assert (adapter.family, adapter.masked) == ("losa", True)
    assert adapter.tensors_used == 6 + 3
    assert adapter.masks is not None and dict(adapter.masks) == MASKS
    assert adapter.facts["scale"] == 2.0
    assert adapter.facts["made_with"] == {"T": 5, "schedule": "cubic", "s_final": 0.5, "seed": 4}


def test_delta_is_masked_and_its_scale_is_fixed(tmp_path: Path):
    """`alpha / r_ref` for ranks 2, 3 and 5 alike (methods: growth must not change the output)."""
    adapter = read(bundle(tmp_path / "b"))
    for module, (a, b) in PAIRS.items():
        delta = adapter.deltas[module]
        kept = MASKS[module].rows()
        want = 2.0 * (b.astype(np.float64) @ a.astype(np.float64)) * kept
        found = delta.rows(0, delta.shape[0])
        assert np.abs(found - want).max() <= 1e-6 * np.abs(want).max()
        assert not found[~kept].view(np.uint32).any()  # +0.0, not -0.0
        assert delta.low_rank() is None


def test_growing_a_rank_with_a_zero_column_changes_nothing(tmp_path: Path):
    a, b = PAIRS[Q0]
    wider = (np.vstack([a, np.ones((1, 16), np.float32)]), np.hstack([b, np.zeros((16, 1), "f4")]))
    before = read(bundle(tmp_path / "x")).deltas[Q0].rows(0, 16)
    after = read(bundle(tmp_path / "y", factors=PAIRS | {Q0: wider})).deltas[Q0].rows(0, 16)
    np.testing.assert_allclose(before, after, rtol=1e-6, atol=1e-6)


def test_equal_calls_write_equal_bytes(tmp_path: Path):
    left, right = bundle(tmp_path / "x"), bundle(tmp_path / "y")
    for file in sorted(left.iterdir()):
        assert file.read_bytes() == (right / file.name).read_bytes(), file.name


def test_masks_of_linears_that_are_not_adapted(tmp_path: Path):
    more = MASKS | random_masks(SPEC, targeted(SPEC, "v"))
    adapter = read(bundle(tmp_path / "b", masks=more))
    assert adapter.masks is not None and set(adapter.masks) == set(more)


def test_never_read_as_a_plain_lora(tmp_path: Path):
    """PEFT merges such a folder densely and without an error."""
    folder = bundle(tmp_path / "b")
    (folder / "losa_config.json").unlink()
    error = refusal(folder)
    assert (error.code, "mask.safetensors" in error.found) == ("adapter-invalid", True)
    (folder / "mask.safetensors").unlink()
    mend_json(folder / "adapter_config.json", iter_rank=8)
    assert refusal(folder).code == "adapter-invalid"


def test_a_bundle_cut_short_is_refused(tmp_path: Path):
    """losa_config.json is written first, so no prefix of the writes reads as a LoRA."""
    whole = bundle(tmp_path / "whole")
    order = ["losa_config.json", "mask.safetensors", "adapter_config.json"]
    for count in range(1, 4):
        cut = tmp_path / f"cut{count}"
        cut.mkdir()
        for name in order[:count]:
            (cut / name).write_bytes((whole / name).read_bytes())
        assert refusal(cut).code in ("input-missing", "adapter-invalid")


def test_without_its_mask_file(tmp_path: Path):
    folder = bundle(tmp_path / "b")
    (folder / "mask.safetensors").unlink()
    assert refusal(folder).code == "adapter-invalid"


def test_without_one_mask(tmp_path: Path):
    folder = bundle(tmp_path / "b")
    masks = load_file(folder / "mask.safetensors")
    del masks[f"{Q1}.weight_mask"]
    save_file(masks, folder / "mask.safetensors")
    error = refusal(folder)
    assert error.code == "mask-invalid"
    assert error.tensor == f"{Q1}.weight_mask"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"rank_pattern": None}, "adapter-invalid"),
        ({"rank_pattern": {}}, "adapter-invalid"),
        ({"rank_pattern": {Q0: 2, Q1: 5}}, "adapter-invalid"),
        ({"rank_pattern": {Q0: 2, Q1: 5, DOWN0: 3, "x": 1}}, "adapter-tensor-missing"),
        ({"rank_pattern": {Q0: 2, Q1: 0, DOWN0: 3}}, "adapter-invalid"),
        ({"rank_pattern": {Q0: 2, Q1: 4, DOWN0: 3}}, "adapter-invalid"),
        ({"alpha": None}, "adapter-invalid"),
        ({"alpha": 0}, "adapter-invalid"),
        ({"alpha": 32}, "adapter-invalid"),
        ({"r_ref": 0}, "adapter-invalid"),
        ({"r_ref": 16}, "adapter-invalid"),
        ({"base_sha256": None}, "adapter-invalid"),
        ({"base_sha256": "12"}, "adapter-invalid"),
        ({"base_sha256": "00" * 32}, "adapter-base"),
        ({"mask": "../mask.safetensors"}, "adapter-invalid"),
        ({"mask": "other.safetensors"}, "adapter-invalid"),
        ({"method": "lora"}, "adapter-invalid"),
        ({"version": 2}, "adapter-invalid"),
        ({"surprise": 1}, "adapter-invalid"),
    ],
)
def test_config_faults(tmp_path: Path, changes: dict[str, Any], code: str):
    folder = bundle(tmp_path / "b")
    mend_json(folder / "losa_config.json", **changes)
    assert refusal(folder).code == code


def test_peft_config_that_disagrees(tmp_path: Path):
    folder = bundle(tmp_path / "b")
    mend_json(folder / "adapter_config.json", alpha_pattern={"q_proj": 1.0})
    assert refusal(folder).code == "adapter-invalid"


def test_a_tensor_beside_the_factors(tmp_path: Path):
    folder = bundle(tmp_path / "b")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[f"{PREFIX}model.norm.weight"] = np.ones(16, np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    assert refusal(folder).code == "adapter-tensor-unused"


def test_another_base(tmp_path: Path):
    base = BaseIdentity("tiny-base", lambda: "11" * 32)
    assert refusal(bundle(tmp_path / "b"), base=base).code == "adapter-base"


def test_untrained(tmp_path: Path):
    zero = {m: (a, np.zeros_like(b)) for m, (a, b) in PAIRS.items()}
    assert refusal(bundle(tmp_path / "b", factors=zero)).code == "adapter-empty"


def test_writer_keeps_what_is_there(tmp_path: Path):
    folder = bundle(tmp_path / "b")
    with pytest.raises(UsageError) as caught:
        bundle(folder)
    assert caught.value.code == "output-exists"


def test_writer_refuses_facts_outside_the_format(tmp_path: Path):
    with pytest.raises(InputRefused):
        bundle(tmp_path / "b", facts={"optimiser": "adam"})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"masks": {Q0: MASKS[Q0], Q1: MASKS[Q1]}},
        {"factors": PAIRS | {Q0: (PAIRS[Q0][0], PAIRS[Q1][1])}},
        {"factors": PAIRS | {Q0: PAIRS[DOWN0]}},
    ],
)
def test_writer_refuses_factors_that_do_not_fit(tmp_path: Path, changes: dict[str, Any]):
    with pytest.raises(InputRefused) as caught:
        bundle(tmp_path / "b", **changes)
    assert caught.value.code == "adapter-shape"
    assert not (tmp_path / "b").exists()


def test_peft_gives_every_module_the_fixed_scale(tmp_path: Path):
    """alpha_pattern undoes PEFT's division by each module's own rank."""
    config = json.loads((bundle(tmp_path / "b") / "adapter_config.json").read_text())
    for module, rank in config["rank_pattern"].items():
        assert config["alpha_pattern"][module] / rank == 2.0
