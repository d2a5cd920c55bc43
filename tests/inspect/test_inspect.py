"""The inspect report: figures, JSON and its schema, architectures without a data file."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.report.inspect import InspectReport, inspect_model, report_of
from tests.check.folder import (
    LINEARS,
    Q0,
    Q0W,
    tensors,
    write_masks_file,
    write_model,
)
from tests.sparsity.slow import prune_nm


def pruned() -> dict[str, Any]:
    """Every linear 2:4, but q of layer 0 dense, and a zero row and column in down of layer 1."""
    rng = np.random.default_rng(1)
    arrays = tensors()
    for module, shape in LINEARS.items():
        if module != Q0:
            arrays[f"{module}.weight"][~prune_nm(rng, *shape, 2, 4)] = 0
    down = arrays["model.layers.1.mlp.down_proj.weight"]
    down[3] = 0
    down[:, 5] = 0
    return arrays


def test_entries_and_totals(tmp_path) -> None:
    arrays = pruned()
    report = inspect_model(write_model(tmp_path / "tiny", arrays))
    assert (report.model, report.family, report.mask_origin) == ("tiny", "llama", "zeros")
    for entry in report.linears:
        weight = arrays[f"{entry.module}.weight"]
        assert (entry.out_features, entry.in_features) == weight.shape
        assert entry.kept == int((weight != 0).sum())
        assert entry.sparsity == pytest.approx(float((weight == 0).mean()))
        assert entry.zero_rows == int((weight == 0).all(axis=1).sum())
        assert entry.zero_columns == int((weight == 0).all(axis=0).sum())
    assert [e.role for e in report.linears[:7]] == ["q", "k", "v", "o", "gate", "up", "down"]
    assert [e.layer for e in report.linears] == [0] * 7 + [1] * 7
    stacked = np.concatenate([arrays[f"{m}.weight"].ravel() for m in LINEARS])
    totals = report.totals
    assert (totals.linears, totals.weights) == (14, stacked.size)
    assert totals.kept == int((stacked != 0).sum())
    assert totals.sparsity == pytest.approx(float((stacked == 0).mean()))
    assert totals.pattern == "mixed n:m"
    assert totals.patterns == {"2:4": 13, "dense": 1}


def test_json_has_the_promised_names_and_fits_its_schema(tmp_path) -> None:
    report = inspect_model(write_model(tmp_path, pruned()))
    data = json.loads(report.model_dump_json(by_alias=True))
    jsonschema.validate(data, InspectReport.model_json_schema())
    assert data["schema"] == 1
    assert {"linears", "sparsity", "pattern"} <= data["totals"].keys()
    assert len(data["linears"]) == data["totals"]["linears"]
    first = data["linears"][0]
    assert {"module", "layer", "role", "out", "in", "sparsity", "pattern"} <= first.keys()
    assert first["group_max"] == {"4": 4, "8": 8, "16": 16}
    assert InspectReport.model_validate(data) == report


def test_the_schema_refuses_another_report(tmp_path) -> None:
    report = inspect_model(write_model(tmp_path))
    data = report.model_dump(mode="json", by_alias=True)
    del data["totals"]["pattern"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, InspectReport.model_json_schema())


def test_a_checked_model_needs_no_second_reading(tmp_path) -> None:
    checkpoint = write_model(tmp_path, pruned())
    checked = check_model(checkpoint)
    (tmp_path / "model.safetensors").unlink()
    assert report_of(checked).totals.pattern == "mixed n:m"


def test_notes_and_dropped_tensors_are_told(tmp_path) -> None:
    arrays = pruned() | {"model.rotary_emb.inv_freq": np.ones(4, np.float32)}
    arrays[Q0W][0, 0] = -0.0
    report = inspect_model(write_model(tmp_path, arrays))
    assert [(n.tensor, n.what, n.count) for n in report.notes][0] == (Q0W, "negative-zeros", 1)
    assert report.notes[-1].what == "zero-rows"
    assert list(report.dropped) == ["model.rotary_emb.inv_freq"]


def test_masks_of_a_file_count_instead_of_zeros(tmp_path) -> None:
    arrays = pruned()
    masks = {m: arrays[f"{m}.weight"] != 0 for m in LINEARS}
    masks[Q0][:] = True
    arrays[Q0W][:, 0] = 0  # kept zeros
    path = write_masks_file(tmp_path / "m.safetensors", masks)
    report = inspect_model(write_model(tmp_path / "model", arrays), path)
    assert report.mask_origin == "m.safetensors"
    assert report.linears[0].sparsity == 0.0
    assert [n.what for n in report.notes][:1] == ["kept-zeros"]


def test_faults_are_refused_as_in_an_export(tmp_path) -> None:
    with pytest.raises(InputRefused) as caught:
        inspect_model(write_model(tmp_path, tensors() | {Q0W: np.ones((2, 2), np.float32)}))
    assert caught.value.code == "tensor-shape"


FOREIGN = {"model_type": "bloom", "architectures": ["BloomForCausalLM"]}


def foreign() -> dict[str, Any]:
    """Weights of an architecture that has no data file."""
    rng = np.random.default_rng(2)
    linears = {f"transformer.h.{i}.mlp.w1.weight": (8, 16) for i in (0, 2, 10)}
    linears |= {"transformer.h.0.experts.0.w2.weight": (8, 16), "projector.weight": (8, 16)}
    arrays = {name: rng.random(shape) + 0.5 for name, shape in linears.items()}
    for name in arrays:
        arrays[name][~prune_nm(rng, 8, 16, 1, 4)] = 0
    others = {
        "transformer.word_embeddings.weight": (20, 16),
        "transformer.wte.weight": (20, 16),
        "model.embed_tokens.weight": (20, 16),
        "lm_head.weight": (20, 16),
        "transformer.h.0.ln_1.weight": (4, 4),
        "transformer.h.0.input_layernorm.weight": (16,),
        "transformer.h.0.mlp.w1.bias": (8,),
        "conv.weight": (4, 4, 3),
        "empty.weight": (0, 16),
    }
    arrays |= {name: np.zeros(shape) for name, shape in others.items()}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def test_an_unknown_architecture_is_read_by_its_matrices(tmp_path) -> None:
    report = inspect_model(write_model(tmp_path, foreign(), FOREIGN))
    assert [(e.module, e.layer, e.role) for e in report.linears] == [
        ("projector", None, "projector"),
        ("transformer.h.0.experts.0.w2", 0, "w2"),
        ("transformer.h.0.mlp.w1", 0, "w1"),
        ("transformer.h.2.mlp.w1", 2, "w1"),
        ("transformer.h.10.mlp.w1", 10, "w1"),
    ]
    assert (report.family, report.totals.pattern, report.totals.sparsity) == (None, "1:4", 0.75)


def test_masks_work_for_an_unknown_architecture(tmp_path) -> None:
    arrays = {n: a for n, a in foreign().items() if "w1.weight" in n}
    masks = {n.removesuffix(".weight"): a != 0 for n, a in arrays.items()}
    path = write_masks_file(tmp_path / "m.safetensors", masks)
    report = inspect_model(write_model(tmp_path / "model", arrays, FOREIGN), path)
    assert (report.mask_origin, report.totals.pattern) == ("m.safetensors", "1:4")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"projector.weight": np.full((8, 16), np.nan, np.float32)}, "value-not-finite"),
        ({"projector.weight": np.ones((8, 16), np.int8)}, "model-quantised"),
    ],
)
def test_faults_of_an_unknown_architecture(tmp_path, change, code) -> None:
    with pytest.raises(InputRefused) as caught:
        inspect_model(write_model(tmp_path, foreign() | change, FOREIGN))
    assert caught.value.code == code


def test_an_unknown_architecture_without_a_matrix_is_refused(tmp_path) -> None:
    with pytest.raises(InputRefused) as caught:
        inspect_model(write_model(tmp_path, {"x": np.ones(3, np.float32)}, FOREIGN))
    assert caught.value.code == "arch-unsupported"
