"""Every fault of an adapter that would end as a wrong merge, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.adapters.losa import write_losa
from exporter.arch.spec import DecoderSpec, load_spec
from exporter.store.checkpoint import Checkpoint
from tests.adapters.forge import (
    PREFIX,
    factors,
    mend_json,
    random_masks,
    simple_lora,
    targeted,
    tensors_of,
    write_lora,
)
from tests.faults.asking import Ask

CONFIG, WEIGHTS = "lora/adapter_config.json", "lora/adapter_model.safetensors"
Q0 = "model.layers.0.self_attn.q_proj"
B0 = f"{PREFIX}{Q0}.lora_B.weight"


def spec_of(model: Path, **changes: Any) -> DecoderSpec:
    return load_spec({**json.loads((model / "config.json").read_text()), **changes})


def edited(edit: Callable[[dict[str, Any]], object], **config: Any) -> Callable[..., Path]:
    """A LoRA on q and v whose tensors were changed."""

    def make(folder: Path, spec: DecoderSpec) -> Path:
        tensors = tensors_of(factors(spec, targeted(spec, "q", "v")))
        edit(tensors)
        return write_lora(folder, tensors, **config)

    return make


def option(**config: Any) -> Callable[..., Path]:
    return lambda folder, spec: simple_lora(folder, spec, **config)


def pickled(folder: Path, spec: DecoderSpec) -> Path:
    simple_lora(folder, spec)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    return folder


def untrained(tensors: dict[str, Any]) -> None:
    tensors.update({n: t * 0 for n, t in tensors.items() if "lora_B" in n})


def doubled_prefix(tensors: dict[str, Any]) -> None:
    for name in list(tensors):
        tensors[PREFIX + name] = tensors.pop(name)


# name -> (how it is made, code, file, tensor, a word of the message)
REFUSED: dict[str, tuple[Callable[..., Path], str, str, str | None, str]] = {
    "BOFT": (option(peft_type="BOFT"), "adapter-unsupported", CONFIG, None, "BOFT"),
    "HRA": (option(peft_type="HRA"), "adapter-unsupported", CONFIG, None, "HRA"),
    "OFT": (option(peft_type="OFT"), "adapter-unsupported", CONFIG, None, "OFT"),
    "P-tuning": (option(peft_type="P_TUNING"), "adapter-unsupported", CONFIG, None, "P_TUNING"),
    "X-LoRA": (option(peft_type="XLORA"), "adapter-unsupported", CONFIG, None, "XLORA"),
    "DoRA without magnitudes": (
        option(use_dora=True),
        "adapter-tensor-missing",
        WEIGHTS,
        None,
        "lora_magnitude_vector",
    ),
    "an option of a newer PEFT": (option(novel=2), "adapter-option", CONFIG, None, "novel"),
    "LoSA that lost its bundle": (
        option(losa=True),
        "adapter-invalid",
        "lora",
        None,
        "rank table",
    ),
    "pickle": (pickled, "pickle-refused", "lora/adapter_model.bin", None, "pickle"),
    "NaN in B": (
        edited(lambda t: t[B0].__setitem__((1, 2), np.nan)),
        "value-not-finite",
        WEIGHTS,
        B0,
        "NaN",
    ),
    "zero delta": (edited(untrained), "adapter-empty", WEIGHTS, None, "zero"),
    "a lone A": (edited(lambda t: t.pop(B0)), "adapter-tensor-missing", WEIGHTS, Q0, "lora_B"),
    "another rank than the config's": (
        edited(lambda _: None, r=8),
        "adapter-shape",
        WEIGHTS,
        None,
        "shape",
    ),
    "a doubled prefix": (edited(doubled_prefix), "adapter-tensor-unused", WEIGHTS, None, PREFIX),
    "the same width, another base": (
        option(base_sha256="ab" * 32),
        "adapter-base",
        CONFIG,
        None,
        "",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, single: Path, ask: Ask) -> None:
    make, code, file, tensor, word = REFUSED[name]
    model = ask.copy(single)
    adapter = make(ask.inputs / "lora", spec_of(model))
    error = ask.refused(model, "--adapter", str(adapter), "--on-merge", "densify")
    assert (error["code"], error["file"]) == (code, file), error
    assert word in error["found"]
    if tensor:
        assert error["tensor"] == tensor


def test_an_adapter_of_another_width(single: Path, ask: Ask) -> None:
    model = ask.copy(single)
    adapter = simple_lora(ask.inputs / "lora", spec_of(model, hidden_size=32, head_dim=8))
    error = ask.refused(model, "--adapter", str(adapter), "--on-merge", "densify")
    assert (error["code"], error["file"]) == ("adapter-shape", WEIGHTS)
    assert error["tensor"].startswith(PREFIX + Q0)


# --- LoSA ------------------------------------------------------------------------------------


def losa(ask: Ask, model: Path) -> Path:
    """A sound bundle: masks are the model's own."""
    spec = spec_of(model)
    modules = targeted(spec, "q")
    from exporter.check.model import check_model

    checkpoint = Checkpoint.open(model)
    checked = check_model(checkpoint)
    linears = {x.module: x for x in spec.linears()}
    write_losa(
        ask.inputs / "losa",
        base_name="tiny",
        base_sha256=checkpoint.identity(),
        factors=factors(spec, modules),
        masks={m: checked.masks.mask(linears[m]) for m in modules},
        alpha=8.0,
        r_ref=4,
    )
    return ask.inputs / "losa"


def test_a_sound_bundle_keeps_every_zero(single: Path, ask: Ask) -> None:
    model = ask.copy(single)
    report = ask.published(model, "--adapter", str(losa(ask, model)))
    assert report["artefact"]["sparsity_after"] == report["model"]["sparsity"]


# name -> (what is broken, code, file)
LOSA: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "mask file lost": (
        lambda f: (f / "mask.safetensors").unlink(),
        "adapter-invalid",
        "losa/mask.safetensors",
    ),
    "losa_config lost": (
        lambda f: (f / "losa_config.json").unlink(),
        "adapter-invalid",
        "losa",
    ),
    "rank table lost": (
        lambda f: mend_json(f / "losa_config.json", rank_pattern=None),
        "adapter-invalid",
        "losa/losa_config.json",
    ),
    "rank table lacks a module": (
        lambda f: mend_json(f / "losa_config.json", rank_pattern={Q0: 4}),
        "adapter-invalid",
        "losa/losa_config.json",
    ),
    "trained on another base": (
        lambda f: mend_json(f / "losa_config.json", base_sha256="ab" * 32),
        "adapter-base",
        "losa/losa_config.json",
    ),
}


@pytest.mark.parametrize("name", LOSA)
def test_broken_bundles(name: str, single: Path, ask: Ask) -> None:
    edit, code, file = LOSA[name]
    model = ask.copy(single)
    bundle = losa(ask, model)
    edit(bundle)
    error = ask.refused(model, "--adapter", str(bundle))
    assert (error["code"], error["file"]) == (code, file), error


def test_a_bundle_with_foreign_masks(single: Path, ask: Ask) -> None:
    model = ask.copy(single)
    bundle = losa(ask, model)
    (bundle / "mask.safetensors").unlink()
    from exporter.store.masks import write_masks

    spec = spec_of(model)
    write_masks(bundle / "mask.safetensors", random_masks(spec, targeted(spec, "q")).items())
    error = ask.refused(model, "--adapter", str(bundle))
    assert error["code"] == "mask-mismatch"
    assert error["tensor"]
