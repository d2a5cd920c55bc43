"""Three masks of a merge: of zeros, of a file, of an adapter; the error names the odd one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.load import load_adapter
from exporter.adapters.losa import write_losa
from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.listener import Silent, Stopwatch
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel
from exporter.pipeline import prepare
from exporter.request import AdapterRequest, ExportRequest
from exporter.sparsity.agree import Difference, difference, masks_sha256
from exporter.sparsity.mask import Mask
from exporter.store.checkpoint import Checkpoint
from tests.adapters.forge import mend_json, simple_lora
from tests.check.folder import LINEARS, Array, tensors, write_masks_file, write_model
from tests.sparsity.patterns import PATTERNS

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
BASE = BaseIdentity("tiny", lambda: "ab" * 32)
Masks = dict[str, Array]

BOOLS = hnp.array_shapes(min_dims=2, max_dims=2, max_side=20).flatmap(
    lambda s: st.tuples(hnp.arrays(np.bool_, s), hnp.arrays(np.bool_, s))
)


@settings(deadline=None)
@given(BOOLS)
def test_difference_equals_the_loop(pair: Any) -> None:
    left, right = pair
    places = [(r, c) for r, c in np.ndindex(*left.shape) if left[r, c] != right[r, c]]
    want = None
    if places:
        want = Difference(int((left & ~right).sum()), int((right & ~left).sum()), places[0])
    assert difference(Mask.from_bool(left), Mask.from_bool(right)) == want


def test_masks_of_other_shapes_are_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="shapes"):
        difference(Mask.from_bool(np.ones((2, 9), bool)), Mask.from_bool(np.ones((2, 10), bool)))


def test_the_digest_of_all_is_that_of_each_whatever_the_order() -> None:
    one = [("b", "2"), ("a", "1")]
    assert masks_sha256(one) == masks_sha256(one[::-1])
    assert len({masks_sha256(x) for x in (one, one[:1], [("a", "2"), ("b", "1")])}) == 3


# --- three sources ---------------------------------------------------------------------------


def masks_of(pattern: str, seed: int = 0) -> Masks:
    rng = np.random.default_rng(seed)
    return {m: PATTERNS[pattern](rng, *shape) for m, shape in LINEARS.items()}


def flipped(masks: Masks, module: str, kept: bool, times: int = 1) -> Masks:
    """The masks with `times` places of `module` that are not `kept` made so."""
    changed = {m: k.copy() for m, k in masks.items()}
    where = np.argwhere(changed[module] != kept)[:times]
    changed[module][tuple(where.T)] = kept
    return changed


def base(folder: Path, zeros: Masks, file: Masks | None = None) -> CheckedModel:
    arrays = tensors()
    for module, kept in zeros.items():
        arrays[f"{module}.weight"][~kept] = 0
    checkpoint = write_model(folder / "base", arrays)
    path = None if file is None else write_masks_file(folder / "masks.safetensors", file)
    return check_model(checkpoint, masks=path)


def bundle(folder: Path, checked: CheckedModel, masks: Masks, **facts: Any) -> Adapter:
    rng = np.random.default_rng(1)
    write_losa(
        folder / "losa",
        base_name="tiny",
        base_sha256="ab" * 32,
        factors={
            m: (
                rng.standard_normal((2, masks[m].shape[1])).astype(np.float32),
                rng.standard_normal((masks[m].shape[0], 2)).astype(np.float32),
            )
            for m in (Q, V)
        },
        masks={m: Mask.from_bool(masks[m]) for m in (Q, V)},
        alpha=4.0,
        r_ref=2,
        facts=facts,
    )
    return load_adapter(folder / "losa", checked.spec, BASE)


def refused(checked: CheckedModel, adapter: Adapter) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        fuse(checked, [(adapter, 1.0)], "densify")
    assert caught.value.code == "mask-mismatch"
    return caught.value


@pytest.mark.parametrize("pattern", PATTERNS)
def test_three_equal_masks_pass_and_one_bit_is_found(pattern: str, tmp_path: Path) -> None:
    masks = masks_of(pattern)
    checked = base(tmp_path, masks, masks)
    fuse(checked, [(bundle(tmp_path, checked, masks), 1.0)])
    odd = bundle(tmp_path / "odd", checked, flipped(masks, V, kept=True))
    error = refused(checked, odd)
    assert error.tensor == V
    assert "1 of 2 modules differ" in error.found
    assert f"of {masks[V].sum()} weights kept here it prunes 0, and it keeps 1" in error.found
    row, column = np.argwhere(~masks[V])[0]
    assert f"[{row}, {column}]" in error.found


def test_the_masks_file_is_the_odd_one(tmp_path: Path) -> None:
    """It keeps more than the model and the adapter do: lawful for the model alone."""
    masks = masks_of("unstructured 50%")
    checked = base(tmp_path, masks, flipped(masks, Q, kept=True, times=3))
    error = refused(checked, bundle(tmp_path, checked, masks))
    assert error.tensor == Q
    assert "so masks.safetensors is the odd one" in error.found
    assert "it prunes 3, and it keeps 0" in error.found


def test_the_adapter_is_the_odd_one(tmp_path: Path) -> None:
    masks = masks_of("2:4")
    checked = base(tmp_path, masks, masks)
    error = refused(checked, bundle(tmp_path, checked, flipped(masks, Q, kept=False)))
    assert "so the adapter's mask is the odd one" in error.found


def test_zeros_on_kept_positions_tell_nothing(tmp_path: Path) -> None:
    masks = masks_of("2:8")
    file, trained = flipped(masks, Q, kept=True), flipped(masks, V, kept=True)
    checked = base(tmp_path, masks, file)
    error = refused(checked, bundle(tmp_path, checked, trained))
    assert "cannot both be right" in error.found
    assert "2 of 2 modules differ" in error.found


def test_a_masks_file_that_explains_zeros_on_kept_positions(tmp_path: Path) -> None:
    masks = masks_of("4:8")
    kept = flipped(masks, Q, kept=True)
    without = base(tmp_path / "without", masks)
    error = refused(without, bundle(tmp_path / "without", without, kept))
    assert error.hint and "--masks" in error.hint
    checked = base(tmp_path, masks, kept)
    fuse(checked, [(bundle(tmp_path, checked, kept), 1.0)])


def exported(folder: Path, base_masks: Masks, file: Masks, own: Masks) -> InputRefused:
    """The error of an export of a model, a masks file that contradicts it, and a bundle."""
    with pytest.raises(InputRefused):
        base(folder, base_masks, file)
    checked = check_model(Checkpoint.open(folder / "base"))
    bundle(folder, checked, own)
    mend_json(folder / "losa" / "losa_config.json", base_sha256=checked.checkpoint.identity())
    with pytest.raises(InputRefused) as caught:
        prepare(
            ExportRequest(
                folder / "base",
                "onnxruntime",
                folder / "out",
                adapters=(AdapterRequest(folder / "losa"),),
                masks=folder / "masks.safetensors",
            ),
            Stopwatch(Silent()),
            None,
        )
    assert (caught.value.code, caught.value.tensor) == ("mask-mismatch", f"{Q}.weight")
    assert "1 of the" in caught.value.found
    return caught.value


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (lambda m: m, "so masks.safetensors is the odd one"),
        (
            lambda m: flipped(m, Q, kept=False),
            "masks as masks.safetensors does, so the model is the odd one",
        ),
        (lambda m: flipped(m, V, kept=False), "is neither: all three differ"),
    ],
)
def test_a_file_that_prunes_what_the_model_has(
    own: Callable[[Masks], Masks], words: str, tmp_path: Path
) -> None:
    masks = masks_of("unstructured 50%")
    error = exported(tmp_path, masks, flipped(masks, Q, kept=False), own(masks))
    assert words in error.found


# --- digests only ----------------------------------------------------------------------------


def each(masks: Masks) -> dict[str, str]:
    return {m: Mask.from_bool(k).sha256() for m, k in masks.items()}


def of_all(masks: Masks) -> str:
    return masks_sha256(each(masks).items())


def digest_lora(folder: Path, checked: CheckedModel, recorded: Any) -> Adapter:
    lora = simple_lora(folder / "lora", checked.spec, mask_sha256=recorded)
    return load_adapter(lora, checked.spec, BASE)


@pytest.mark.parametrize(
    "form", [each, lambda m: masks_sha256(each(m).items())], ids=["each", "all"]
)
@pytest.mark.parametrize("pattern", ["unstructured 70%", "2:8", "columns"])
def test_a_digest_of_the_mask(form: Callable[[Masks], Any], pattern: str, tmp_path: Path) -> None:
    masks = masks_of(pattern)
    checked = base(tmp_path, masks)
    fuse(checked, [(digest_lora(tmp_path, checked, form(masks)), 1.0)], "mask")
    other = flipped(masks, V, kept=False)
    error = refused(checked, digest_lora(tmp_path / "odd", checked, form(other)))
    assert "than the model's zeros" in error.found
    assert (error.tensor == V) == (form is each)
    assert ("1 of 14 modules differ" in error.found) == (form is each)


def test_a_digest_beside_a_masks_file_names_the_odd_one(tmp_path: Path) -> None:
    masks = masks_of("unstructured 50%")
    checked = base(tmp_path, masks, flipped(masks, Q, kept=True))
    error = refused(checked, digest_lora(tmp_path, checked, each(masks)))
    assert "it is that of the model's zeros, so masks.safetensors is the odd one" in error.found
    third = each(flipped(masks, Q, kept=False))
    error = refused(checked, digest_lora(tmp_path / "third", checked, third))
    assert "not that of the model's zeros either" in error.found


def test_a_digest_of_no_module(tmp_path: Path) -> None:
    checked = base(tmp_path, masks_of("2:4"))
    with pytest.raises(InputRefused) as caught:
        fuse(checked, [(digest_lora(tmp_path, checked, {"x": "ab" * 32}), 1.0)], "mask")
    assert (caught.value.code, caught.value.tensor) == ("adapter-module", "x")


@pytest.mark.parametrize("recorded", ["ab", 7, {"x": "AB" * 32}, ["ab" * 32]])
def test_what_is_no_digest(recorded: Any, tmp_path: Path) -> None:
    checked = base(tmp_path, masks_of("2:4"))
    with pytest.raises(InputRefused) as caught:
        digest_lora(tmp_path, checked, recorded)
    assert caught.value.code == "adapter-invalid"


# --- what a bundle claims of its masks -------------------------------------------------------


@pytest.mark.parametrize("claim", ["2:8", "2:8 kept", "6:8 zeros", "75%"])
def test_a_bundle_s_claim_that_holds(claim: str, tmp_path: Path) -> None:
    masks = masks_of("2:8")
    checked = base(tmp_path, masks)
    adapter = bundle(tmp_path, checked, masks, pattern=claim, sparsity_pattern={Q: 0.75})
    assert adapter.facts["made_with"]["pattern"] == claim


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"pattern": "6:8"}, "6:8 zeros = 2:8 kept = 75 % zeros; found 2:8 kept in 2 of 2"),
        ({"sparsity_pattern": {Q: 0.25, V: 0.25}}, "as a density = 75 % zeros"),
    ],
)
def test_a_bundle_s_claim_of_the_other_convention(
    facts: dict[str, Any], words: str, tmp_path: Path
) -> None:
    masks = masks_of("2:8")
    checked = base(tmp_path, masks)
    with pytest.raises(InputRefused) as caught:
        bundle(tmp_path, checked, masks, **facts)
    assert (caught.value.code, caught.value.file) == ("pattern-mismatch", "losa/losa_config.json")
    assert words in caught.value.found


def test_a_claim_that_is_no_pattern(tmp_path: Path) -> None:
    masks = masks_of("2:8")
    checked = base(tmp_path, masks)
    bundle(tmp_path, checked, masks)
    mend_json(tmp_path / "losa" / "losa_config.json", pattern="two")
    with pytest.raises(InputRefused) as caught:
        load_adapter(tmp_path / "losa", checked.spec, BASE)
    assert caught.value.code == "adapter-invalid"
    assert "two" in caught.value.found
