"""`mock.json`: how fast, how noisy, how wrong a mock engine is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.errors import InputRefused

NAME = "mock.json"
# Of a step: the share that no pruning takes away (attention, norms, sampling).
_FIXED = 0.2

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MockSpec(BaseModel):
    """Everything that a mock engine can be told. Times are those of batch 1 and no noise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft_ms: _NotNegative = 20.0
    tpot_ms: _NotNegative = Field(default=5.0, description="of a dense model")
    density: Annotated[float, Field(gt=0, le=1)] = 1.0
    slowdown: _Positive = Field(default=1.0, description="planted: multiplies each step")
    step_noise: _NotNegative = Field(default=0.0, description="sigma of the log of each step")
    process_noise: _NotNegative = Field(default=0.0, description="sigma of the log, once a process")
    seed: int | None = Field(default=None, description="of the noise; null: a new one")
    work: Literal["wait", "gemv"] = Field(default="wait", description="gemv: a step reads weights")
    weight_bytes: Annotated[int, Field(ge=0, le=1 << 32)] = 1 << 20
    wrong: float = Field(default=0.0, description="added to each logit")
    fail: Literal["no", "missing", "crash"] = "no"
    max_batch: Annotated[int, Field(ge=1, le=256)] = 16
    max_tokens: Annotated[int, Field(ge=2)] = 8192

    @property
    def step_seconds(self) -> float:
        """One step of batch 1: a fixed share, and one that follows the density."""
        share = _FIXED + (1 - _FIXED) * self.density
        return self.tpot_ms * 1e-3 * share * self.slowdown

    @property
    def kept_bytes(self) -> int:
        """Weights that a step reads."""
        return round(self.weight_bytes * self.density)


def read_spec(folder: Path) -> MockSpec:
    """The engine's settings of an artefact.

    Raises:
        InputRefused: `input-missing`, `json-invalid`.
    """
    try:
        return MockSpec.model_validate_json((folder / NAME).read_bytes())
    except OSError:
        raise InputRefused("input-missing", "no settings of a mock here", file=NAME) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputRefused("json-invalid", f"{where}: {first['msg']}", file=NAME) from None
