"""s2ft_config.json: which linears S2FT trained by rows and which by columns.

Format: docs/formats/s2ft.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from exporter.adapters.peft_files import label, read_config, validated

S2FT_CONFIG = "s2ft_config.json"
Kind = Literal["cols", "rows"]


class S2ftConfig(BaseModel):
    """What the merge needs, and how the selection was made (for the report)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Literal["s2ft"]
    version: Literal[1] = 1
    base: str | None = None
    base_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    kinds: dict[str, Kind] = Field(min_length=1)  # module -> what its index counts
    scaling: float = Field(default=1.0, allow_inf_nan=False)
    ratios: dict[str, float] | None = None
    strategy: str | None = None
    seed: int | None = None


def read_s2ft_config(folder: Path) -> S2ftConfig:
    """The config of an S2FT adapter.

    Raises:
        InputRefused: `adapter-invalid`, `json-invalid`, `input-missing`.
    """
    return validated(S2ftConfig, read_config(folder, S2FT_CONFIG), label(folder, S2FT_CONFIG))
