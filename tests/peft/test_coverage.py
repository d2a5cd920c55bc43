"""Every method and every option that the installed peft knows is accounted for by name."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    ShiraConfig,
    VeraConfig,
)
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.vera.model import _kaiming_init  # pyright: ignore[reportPrivateUsage]
from peft.utils import PeftType

from exporter.adapters import adalora, ia3, ln_tuning, loha, lokr, shira, vera
from exporter.adapters.foreign import CONVERTIBLE, MERGEABLE, PROMPTS, ROUTED, way_out
from exporter.adapters.load import FAMILIES
from exporter.adapters.tensors import TensorFile
from exporter.adapters.vera_projection import drawn
from exporter.errors import InputRefused
from tests.adapters.forge import mend_json, read, simple_lora, spec_of

OURS = {"base_sha256", "mask_sha256"}  # what our reader takes beside peft's own fields
TUNERS: dict[str, tuple[Any, Any]] = {
    "adalora": (adalora.TUNER, AdaLoraConfig),
    "ia3": (ia3.TUNER, IA3Config),
    "ln_tuning": (ln_tuning.TUNER, LNTuningConfig),
    "loha": (loha.TUNER, LoHaConfig),
    "lokr": (lokr.TUNER, LoKrConfig),
    "shira": (shira.TUNER, ShiraConfig),
    "vera": (vera.TUNER, VeraConfig),
}
FOREIGN = PROMPTS | ROUTED | CONVERTIBLE | MERGEABLE


def claimed(kind: str, tmp_path: Path) -> bool:
    """Whether a family reads folders of this type."""
    folder = simple_lora(tmp_path / kind, spec_of(), peft_type=kind)
    return any(family.claims(folder) for family in FAMILIES)


@pytest.mark.parametrize("name", TUNERS)
def test_every_field_of_the_config_is_in_the_table(name: str):
    tuner, config = TUNERS[name]
    table = tuner.options
    named = table.read | table.harmless | set(table.refused)
    fields = {f.name for f in dataclasses.fields(config)}
    assert named - OURS == fields
    assert table.read & table.harmless <= {"base_model_name_or_path"}  # a fact for the report
    assert not (table.read | table.harmless) & set(table.refused)


@pytest.mark.parametrize("kind", [t.value for t in PeftType])
def test_every_method_is_read_or_refused_by_name(tmp_path: Path, kind: str):
    if claimed(kind, tmp_path):
        assert kind not in FOREIGN
        return
    with pytest.raises(InputRefused) as caught:
        read(tmp_path / kind)
    assert (caught.value.code, kind in caught.value.found) == ("adapter-unsupported", True)
    assert sum(kind in known for known in (PROMPTS, ROUTED, CONVERTIBLE, MERGEABLE)) == 1
    assert caught.value.hint == way_out(kind)


def layer_classes(kind: str) -> list[type]:
    """The linear layers of a method in peft."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(kind)]
    module = sys.modules[f"{tuner.__module__.rpartition('.')[0]}.layer"]
    found = [v for v in vars(module).values() if isinstance(v, type)]
    return [c for c in found if issubclass(c, BaseTunerLayer) and c is not BaseTunerLayer]


@pytest.mark.parametrize("kind", sorted(CONVERTIBLE))
def test_what_is_said_to_convert_does(kind: str):
    assert any("supports_lora_conversion" in vars(c) for c in layer_classes(kind))


@pytest.mark.parametrize("kind", sorted((MERGEABLE | CONVERTIBLE) - {"TRAINABLE_TOKENS"}))
def test_what_is_said_to_merge_does(kind: str):
    assert any(hasattr(c, "merge") for c in layer_classes(kind))


def test_an_unknown_method_is_refused(tmp_path: Path):
    folder = simple_lora(tmp_path / "a", spec_of())
    mend_json(folder / "adapter_config.json", peft_type="OF_2030")
    with pytest.raises(InputRefused) as caught:
        read(folder)
    assert caught.value.code == "adapter-unsupported"


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_vera_is_drawn_as_peft_draws_it(tmp_path: Path, seed: int):
    """Bit for bit, also where a vectorised loop could run."""
    folder = simple_lora(tmp_path / "a", spec_of())
    tensors = TensorFile(folder / "adapter_model.safetensors", "a")
    rank, out, width = 37, 301, 1009
    found = drawn(tensors, rank, (out, width), seed)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    a = _kaiming_init((rank, width), generator=generator).numpy()
    b = _kaiming_init((out, rank), generator=generator).numpy()
    np.testing.assert_array_equal(found.a(), a)
    np.testing.assert_array_equal(found.b(0, out), b)
    assert np.abs(a).max() * np.abs(b).max() <= found.top
