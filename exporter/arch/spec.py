"""From a config to its architecture: the one loader, and the names that most parts need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.arch.decoder import ROLES, DecoderSpec, Rope, load_decoder
from exporter.arch.family import find_family
from exporter.arch.fields import FILE
from exporter.arch.gpt2 import GPT2, load_gpt2
from exporter.arch.model_spec import Linear, ModelSpec
from exporter.arch.moe import load_moe
from exporter.errors import InputRefused

__all__ = ["ROLES", "DecoderSpec", "Linear", "ModelSpec", "Rope", "artefact_spec", "load_spec"]

_STORAGE = ("quantization_config", "compression_config")


def load_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Spec of a parsed config.json, by its model_type: `DecoderSpec`, `MoeSpec` or `Gpt2Spec`.

    Raises:
        InputRefused: `arch-unsupported`, `config-invalid`, `model-quantised`.
    """
    _refuse_foreign(config)
    if config.get("model_type") == GPT2:
        return load_gpt2(config)
    family = find_family(config.get("model_type"), config.get("architectures"))
    body = load_decoder(config, family)
    return body if family.experts is None else load_moe(body, family)


def artefact_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Spec of an artefact's config.json, which may say how its weights are packed.

    Raises:
        InputRefused: `arch-unsupported`, `config-invalid`.
    """
    return load_spec({key: value for key, value in config.items() if key not in _STORAGE})


def _refuse_foreign(config: Mapping[str, Any]) -> None:
    for key in _STORAGE:
        if config.get(key):
            raise InputRefused("model-quantised", f"it has a {key}", file=FILE)
    auto: Any = config.get("auto_map")
    if isinstance(auto, Mapping) and "AutoModelForCausalLM" in auto:
        raise InputRefused(
            "arch-unsupported",
            "auto_map names code of the model's own, which is never run",
            expected="a model that transformers itself implements",
            file=FILE,
        )
