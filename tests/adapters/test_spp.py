"""SPP: its equation, its zeros, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exporter.adapters.spp import write_spp
from exporter.merge.fuse import fuse
from tests.adapters.forge import DIGEST, PREFIX, mend_json, targeted
from tests.adapters.own import bits, close, in_blocks, load, refused, rows_of
from tests.merge.world import make_model, shape_of, tensors_of

MODEL = make_model(0.7, intermediate_size=32, num_key_value_heads=4)
WEIGHTS = tensors_of(MODEL)
MODULES = targeted(MODEL.spec, "q", "up", "down")


def factors(seed: int = 3) -> dict[str, tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    found: dict[str, tuple[Any, Any]] = {}
    for module in MODULES:
        out, width = shape_of(MODEL.spec, module)
        a = rng.standard_normal((16, width)).astype(np.float32)
        found[module] = (a, rng.standard_normal((out, 1)).astype(np.float32))
    return found


def slow(weight: Any, a: Any, c: Any, scale: float) -> Any:
    """float64, one element at a time."""
    out, width = weight.shape
    delta = np.zeros(weight.shape)
    for i in range(out):
        for j in range(width):
            delta[i, j] = scale * float(weight[i, j]) * float(a[16 * i // out, j]) * float(c[i, 0])
    return delta


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_spp(tmp_path / "spp", factors=factors(), base_name="tiny-base", base_sha256=DIGEST)
    return tmp_path / "spp"


def test_against_the_equation(folder: Path):
    adapter = load(folder, MODEL)
    assert (adapter.family, adapter.masked, adapter.tensors_used) == ("spp", True, 12)
    assert adapter.facts["scale"] == 2.0
    for module, (a, c) in factors().items():
        weight = WEIGHTS[f"{module}.weight"]
        found = rows_of(adapter.deltas[module], weight)
        close(found, slow(weight, a, c, 2.0))
        assert (bits(in_blocks(adapter.deltas[module], weight, 5)) == bits(found)).all()


def test_zeros_stay_without_a_policy(folder: Path):
    fused = fuse(MODEL, [(load(folder, MODEL), 1.0)])
    for module in MODULES:
        weight = WEIGHTS[f"{module}.weight"]
        merged = fused.tensors[f"{module}.weight"].rows(0, len(weight))
        assert not bits(merged)[weight == 0].any()  # +0.0, every one of them
        assert np.count_nonzero(merged) == np.count_nonzero(weight)
        assert fused.record["modules"][module]["reason"] == "masked delta"


def test_columns_of_the_low_memory_variant(folder: Path):
    """`weight_col` as `[1, out]`."""
    want = {m: rows_of(d, WEIGHTS[f"{m}.weight"]) for m, d in load(folder, MODEL).deltas.items()}
    file = folder / "adapter_model.safetensors"
    tensors = {n: t.T.copy() if n.endswith("_col") else t for n, t in load_file(file).items()}
    save_file(tensors, file)
    for module, delta in load(folder, MODEL).deltas.items():
        assert (rows_of(delta, WEIGHTS[f"{module}.weight"]) == want[module]).all()


def test_an_output_that_16_does_not_divide(tmp_path: Path):
    model = make_model(0.5)  # intermediate 24
    module = targeted(model.spec, "up")[0]
    pair = (np.ones((16, 16), "f4"), np.ones((32, 1), "f4"))
    write_spp(tmp_path / "spp", factors={module: pair})
    assert "24 outputs" in refused("adapter-shape", tmp_path / "spp", model).found


def test_a_pickle_is_refused_with_the_way_out(folder: Path):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    error = refused("pickle-refused", folder, MODEL)
    assert "weights_only=True" in error.hint and "save_file" in error.hint


def test_a_missing_column_is_no_lora(folder: Path):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(f"{PREFIX}{MODULES[0]}.lora_A.weight_col")
    save_file(tensors, file)
    assert "weight_col" in refused("adapter-tensor-missing", folder, MODEL).found


def broken(change: str, folder: Path) -> str:
    """Break one thing; the code that must follow."""
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(file)
    first = f"{PREFIX}{MODULES[0]}.lora_A.weight"
    if change == "rows":
        tensors[first] = tensors[first][:8].copy()
    if change == "unused":
        tensors[f"{PREFIX}{MODULES[0]}.lora_A.gate"] = np.ones(3, "f4")
    if change == "module":
        tensors[first.replace("layers.0", "layers.9")] = tensors.pop(first)
        tensors[f"{first}_col".replace("layers.0", "layers.9")] = tensors.pop(f"{first}_col")
    if change == "nan":
        tensors[first][3, 3] = np.nan
    if change == "zero":
        tensors |= {n: np.zeros_like(t) for n, t in tensors.items() if n.endswith("_col")}
    save_file(tensors, file)
    if change == "fan_in_fan_out":
        mend_json(config, fan_in_fan_out=True)
    if change == "unknown":
        mend_json(config, power=2)
    if change == "base":
        mend_json(config, base_sha256="00" * 32)
    if change == "target":
        mend_json(config, target_modules=["q_proj", "up_proj"])
    return {
        "rows": "adapter-shape",
        "unused": "adapter-tensor-unused",
        "module": "adapter-module",
        "nan": "value-not-finite",
        "zero": "adapter-empty",
        "fan_in_fan_out": "adapter-option",
        "unknown": "adapter-option",
        "base": "adapter-base",
        "target": "adapter-tensor-unused",
    }[change]


@pytest.mark.parametrize(
    "change",
    ["rows", "unused", "module", "nan", "zero", "fan_in_fan_out", "unknown", "base", "target"],
)
def test_broken_folders(folder: Path, change: str):
    code = broken(change, folder)
    refused(code, folder, MODEL)
