"""Fields that the adapter_config.json of every PEFT tuner shares: targets, saved modules, biases.

Meaning: peft/tuners/tuners_utils.py (`check_target_module_exists`) and peft/utils/other.py of
PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from exporter.adapters.factors import Shapes, embedding_module, head_module
from exporter.adapters.patterns import inside_saved, layer_index, names_module
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Files(NamedTuple):
    """How errors name the two files of a folder."""

    config: str
    tensors: str


class PeftConfig(BaseModel):
    """What the families' own configs extend; defaults are PEFT's."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] = Field(default_factory=list)
    ensure_weight_tying: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    base_model_name_or_path: str | None = None
    base_sha256: str | None = None
    # Of the mask it was trained under: one digest for all linears, or one for each module.
    mask_sha256: Digest | dict[str, Digest] | None = None

    @field_validator("modules_to_save", mode="before")
    @classmethod
    def _null_is_empty_list(cls, value: Any) -> Any:
        return [] if value is None else value

    @field_validator("bias", mode="before")
    @classmethod
    def _only_the_adapted(cls, value: Any) -> Any:
        # Each method has its own word for it ("vera_only"); PEFT looks at the end alone.
        return "lora_only" if isinstance(value, str) and value.endswith("_only") else value

    def targets(self, module: str, ends: Container[str], file: str) -> bool:
        """Whether PEFT would adapt this module; `ends` are the embedding and the head."""
        if self.exclude_modules and names_module(self.exclude_modules, module, file):
            return False
        if inside_saved(self.modules_to_save, module) or self.target_modules is None:
            return False
        if isinstance(self.target_modules, str):
            if self.target_modules.lower() == "all-linear":
                return module not in ends
            return names_module(self.target_modules, module, file)
        if module in self.target_modules:
            return True
        return names_module(self.target_modules, module, file) and self._in_layers(module, file)

    def _in_layers(self, module: str, file: str) -> bool:
        wanted = self.layers_to_transform
        if wanted is None or wanted == []:
            return True
        index = layer_index(module, self.layers_pattern, file)
        return index in ([wanted] if isinstance(wanted, int) else wanted)


def check_targets(
    found: Mapping[str, str],
    config: PeftConfig,
    shapes: Shapes,
    spec: ModelSpec,
    files: Files,
    further: frozenset[str] = frozenset(),
) -> None:
    """The config's targets and the file's modules are the same set.

    Args:
        found: module -> one of its tensors in the file.
        shapes: every module of the base that the family can adapt.
        files: labels of the config and of the tensor file.
        further: modules that another option than `target_modules` calls for.

    Raises:
        InputRefused: `adapter-tensor-unused`, `adapter-tensor-missing`.
    """
    if config.target_modules is None:
        return
    ends = (embedding_module(spec), head_module(spec))
    wanted = {m for m in shapes if m in further or config.targets(m, ends, files.config)}
    extra = [m for m in found if m not in wanted]
    if extra:
        raise InputRefused(
            "adapter-tensor-unused",
            f"target_modules does not name the module, so PEFT would leave it out "
            f"({len(extra)} of {len(found)} modules)",
            expected="tensors of targeted modules",
            file=files.tensors,
            tensor=found[extra[0]],
        )
    missing = [m for m in shapes if m in wanted and m not in found]
    if missing:
        raise InputRefused(
            "adapter-tensor-missing",
            f"target_modules names {len(wanted)} modules, {len(missing)} have no tensors",
            expected="the tensors of each",
            file=files.tensors,
            tensor=missing[0],
        )
