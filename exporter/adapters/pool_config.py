"""pool_config.json: sizes, grouping, normaliser and scale of a pooling adapter.

Format: docs/formats/pooling.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from exporter.adapters.peft_files import label, read_config, validated
from exporter.adapters.pool_groups import Grouping, Ints, group_of
from exporter.adapters.pool_norm import DATA_DEPENDENT, NEEDS_TAU, Norm
from exporter.errors import InputRefused
from exporter.limits import LIMITS

POOL_CONFIG = "pool_config.json"


class PoolConfig(BaseModel):
    """What turns G into a table of the weight's blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Literal["pool"]
    version: Literal[1] = 1
    base: str | None = None
    base_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    gin: int | None = Field(default=None, gt=0, le=LIMITS.dim)
    gout: int | None = Field(default=None, gt=0, le=LIMITS.dim)
    sizes: dict[str, list[int]] = Field(default_factory=dict)  # module -> [gout, gin]
    pool: Literal["mean", "sum"]
    grouping: Grouping
    group_size: int | None = Field(default=None, gt=0, le=LIMITS.dim)
    scale: float = Field(allow_inf_nan=False)
    norm: Norm = "none"
    tau: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    eps: float = Field(default=1e-12, ge=0, allow_inf_nan=False)
    train_mask: Literal["exact", "ste", "none"]
    mask: str | None = None  # name of a masks file beside it

    @field_validator("sizes")
    @classmethod
    def _pairs(cls, value: dict[str, list[int]]) -> dict[str, list[int]]:
        for module, pair in value.items():
            if len(pair) != 2 or not all(0 < g <= LIMITS.dim for g in pair):
                raise ValueError(f"{pair} of {module}, not [gout, gin]")
        return value

    @field_validator("mask")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and (
            Path(value).name != value or "\\" in value or value in ("", "..")
        ):
            raise ValueError("not a plain file name")
        return value

    @model_validator(mode="after")
    def _complete(self) -> PoolConfig:
        if self.norm in NEEDS_TAU and self.tau is None:
            raise ValueError(f"norm {self.norm} needs tau")
        if (self.grouping == "size") != (self.group_size is not None):
            raise ValueError("group_size belongs to the grouping size, and to no other")
        if self.mask is not None and self.train_mask == "none":
            raise ValueError("a mask, though train_mask is none")
        return self

    @property
    def masked(self) -> bool:
        """Whether the delta is taken under the mask (trained so, exactly or straight through)."""
        return self.train_mask != "none"

    def counts(self, module: str, shape: tuple[int, int]) -> tuple[int, int] | None:
        """`(gout, gin)` of one module; None where the config gives none."""
        if self.group_size is not None:
            return -(-shape[0] // self.group_size), -(-shape[1] // self.group_size)
        if module in self.sizes:
            return self.sizes[module][0], self.sizes[module][1]
        if self.gin is None or self.gout is None:
            return None
        return self.gout, self.gin

    def groups(self, size: int, count: int) -> Ints:
        """Group of each position of one axis.

        Raises:
            ValueError: see `group_of`.
        """
        return group_of(size, count, self.grouping, self.group_size)


def read_pool_config(folder: Path) -> PoolConfig:
    """The config of a pooling adapter.

    Raises:
        InputRefused: `adapter-option` for a normaliser that no table holds, `adapter-invalid`.
    """
    raw = read_config(folder, POOL_CONFIG)
    file = label(folder, POOL_CONFIG)
    _check_norm(raw.get("norm"), file)
    return validated(PoolConfig, raw, file)


def _check_norm(norm: Any, file: str) -> None:
    if isinstance(norm, str) and norm.lower().replace("_", "") in DATA_DEPENDENT:
        raise InputRefused(
            "adapter-option",
            f"norm {norm!r} depends on the data that flows through, so no weight computes it",
            expected="none, wd, maxnorm, fro, row or spectral",
            file=file,
            hint="Train with a normaliser of G itself, or with none.",
        )
