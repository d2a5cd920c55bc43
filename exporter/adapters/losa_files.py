"""The two files that make a LoSA bundle more than a LoRA: losa_config.json and the masks.

Format: docs/formats/losa.md. The reference code of LoSA saves neither, and PEFT loads the rest
as a dense LoRA without an error, so both are required.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from exporter.adapters.peft_files import CONFIG, label, read_config, validated
from exporter.check.claims import check_claim, pattern_mismatch
from exporter.errors import InputRefused
from exporter.limits import LIMITS
from exporter.sparsity.conventions import Claim, claimed_shares
from exporter.sparsity.count import mask_pattern
from exporter.sparsity.mask import Mask
from exporter.store.header import read_header
from exporter.store.masks import SUFFIX, MasksFile

LOSA_CONFIG = "losa_config.json"
MASK_FILE = "mask.safetensors"
VERSION = 1


class LosaConfig(BaseModel):
    """losa_config.json; `alpha / r_ref` is the scale of every module, whatever its rank."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Literal["losa"]
    version: Literal[1] = VERSION
    base: str | None = None
    base_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    alpha: int | float = Field(gt=0)
    r_ref: int = Field(gt=0, le=LIMITS.lora_rank)
    rank_pattern: dict[str, int] = Field(min_length=1)  # module -> its rank
    mask: str = MASK_FILE
    pattern: str | None = None  # of the masks; a `Claim`, held against them
    sparsity_pattern: dict[str, float] | None = None  # module -> share of zeros; likewise
    # How it was made: carried into the report, without effect on the merge.
    T: int | None = None
    schedule: str | list[float] | None = None
    s_final: float | None = None
    delta: float | list[float] | None = None
    beta: float | None = None
    seed: int | None = None

    @field_validator("rank_pattern")
    @classmethod
    def _ranks_in_range(cls, value: dict[str, int]) -> dict[str, int]:
        for module, rank in value.items():
            if not 0 < rank <= LIMITS.lora_rank:
                raise ValueError(f"rank {rank} of {module}")
        return value

    @field_validator("pattern")
    @classmethod
    def _known_pattern(cls, value: str | None) -> str | None:
        return None if value is None else Claim.parse(value).text

    @field_validator("mask")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if Path(value).name != value or "\\" in value or value in ("", ".", ".."):
            raise ValueError("not a plain file name")
        return value

    @property
    def scale(self) -> float:
        """`alpha / r_ref` (LoSA: constant while ranks grow, so that growth changes nothing)."""
        return self.alpha / self.r_ref


PROVENANCE = ("T", "schedule", "s_final", "delta", "beta", "pattern", "seed")


def read_losa_config(folder: Path) -> LosaConfig:
    """The bundle's own config.

    Raises:
        InputRefused: `adapter-invalid`, `json-invalid`, `input-missing`.
    """
    return validated(LosaConfig, read_config(folder, LOSA_CONFIG), label(folder, LOSA_CONFIG))


def is_losa(folder: Path) -> bool:
    """Whether the folder is a LoSA bundle.

    Raises:
        InputRefused: `adapter-invalid` for one that has lost its losa_config.json: read as a
            plain LoRA it would merge to a dense model without an error.
    """
    if (folder / LOSA_CONFIG).exists():
        return True
    trace = _trace(folder)
    if trace:
        raise InputRefused(
            "adapter-invalid",
            f"{trace}, but no {LOSA_CONFIG}: the rank table and the scale are lost",
            expected="a whole LoSA bundle",
            file=folder.name,
            hint="Copy the whole folder; see docs/formats/losa.md.",
        )
    return False


def _trace(folder: Path) -> str | None:
    if (folder / MASK_FILE).exists():
        return f"{MASK_FILE} lies here"
    if not (folder / CONFIG).is_file():
        return None
    config = read_config(folder)
    for key in ("losa", "iter_rank", "losa_config"):
        if config.get(key):
            return f"{CONFIG} has {key!r}"
    return None


class BundleMasks(Mapping[str, Mask]):
    """Masks of a bundle by module, read when asked for; the last one is held."""

    def __init__(self, file: MasksFile) -> None:
        self._file = file
        self._held: tuple[str, Mask] | None = None

    def __getitem__(self, module: str) -> Mask:
        """The mask of one module; `mask-invalid` where its bits break the format."""
        if module not in self._file.shapes:
            raise KeyError(module)
        held = self._held  # read once: another thread may set it
        if held is None or held[0] != module:
            held = (module, self._file.mask(module))
            self._held = held
        return held[1]

    def __iter__(self) -> Iterator[str]:
        """Modules in the order of the base's linears."""
        return iter(self._file.shapes)

    def __len__(self) -> int:
        """Number of masks."""
        return len(self._file.shapes)


def open_masks(
    folder: Path, name: str, adapted: Iterable[str], linears: Mapping[str, tuple[int, int]]
) -> BundleMasks:
    """The bundle's masks: one for each adapted module; further linears of the base may have one.

    Raises:
        InputRefused: `adapter-invalid` where the file is not there; `mask-invalid`.
    """
    path = folder / name
    if not path.is_file():
        raise InputRefused(
            "adapter-invalid",
            "the bundle's mask file is not there: without it the merge would be dense",
            expected=f"{name}, as the config names it",
            file=label(folder, name),
        )
    held = {n.removesuffix(SUFFIX) for n in read_header(path).entries}
    wanted = held | set(adapted)
    return BundleMasks(MasksFile.open(path, {m: s for m, s in linears.items() if m in wanted}))


def check_claims(config: LosaConfig, masks: Mapping[str, Mask], file: str) -> None:
    """The masks are sparse as `pattern` and `sparsity_pattern` say; reads them only for a claim.

    Raises:
        InputRefused: `pattern-mismatch`, with both readings of N:M or of a share.
    """
    if config.pattern is None and config.sparsity_pattern is None:
        return
    found = {m: mask_pattern(m, masks[m]) for m in masks}
    if config.pattern is not None:
        check_claim(Claim.parse(config.pattern), found.values(), file)
    shares = config.sparsity_pattern or {}
    wrong = claimed_shares(shares.items(), {m: p.pattern.density for m, p in found.items()})
    if wrong is not None:
        raise pattern_mismatch("the shares of sparsity_pattern", wrong, file)


def facts_of(config: LosaConfig) -> dict[str, Any]:
    """What goes into the report."""
    made = {k: v for k in PROVENANCE if (v := getattr(config, k)) is not None}
    ranks = sorted(set(config.rank_pattern.values()))
    return {
        "alpha": config.alpha,
        "r_ref": config.r_ref,
        "scale": config.scale,
        "ranks": ranks,
        "made_with": made,
    }
