"""What config.json says of packed linears: kind, value type, shape, counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from numpy.typing import NDArray

from backends.packed.order import TILE, TILE_COLUMNS, TILE_ROWS
from backends.packed.values import ValueType
from exporter.errors import InputRefused
from exporter.limits import LIMITS
from exporter.sparsity.nm import GROUPS, capacity
from exporter.store.dtypes import DType
from exporter.store.header import check_tensor_name

__all__ = ["KINDS", "METHOD", "PackedLinear", "PackedModel", "Parts", "ValueType"]

Kind = Literal["ragged", "nm", "dense"]
Parts = Mapping[str, NDArray[Any]]
"""Arrays of one linear by part: "mask", "values", "offsets", "starts", "scales"."""

KINDS: tuple[Kind, ...] = ("ragged", "nm", "dense")
METHOD, FORMAT, VERSION = "sparse-export", "packed", 1
_CONFIG = "config.json"


@dataclass(frozen=True)
class PackedLinear:
    """One packed linear of weight `[out, in]`: an entry of `layers`. docs/formats/packed.md.

    Raises:
        ValueError: fields that contradict one another.
    """

    kind: Kind
    values: ValueType
    shape: tuple[int, int]
    nnz: int
    n: int = 0  # kind nm only: n of m kept
    m: int = 0
    group: int = 0  # quantised only: columns that share a scale; 0: the whole row

    def __post_init__(self) -> None:
        """Refuse what no file can be."""
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r:.80}, not one of {', '.join(KINDS)}")
        if not all(0 < extent <= LIMITS.dim for extent in self.shape):
            raise ValueError(f"shape is {list(self.shape)}, not [1..{LIMITS.dim}] twice")
        self._check_nm()
        if self.group and (not self.values.quantised or self.group % TILE_COLUMNS):
            raise ValueError(f"group {self.group} is no multiple of 64 of quantised values")
        if self.group < 0 or self.group > LIMITS.dim:
            raise ValueError(f"group {self.group} is out of range")
        most = most_kept(self.shape, self.n, self.m)
        if not (self.nnz == most if self.kind == "dense" else 0 <= self.nnz <= most):
            raise ValueError(f"nnz is {self.nnz}, of at most {most}")

    def _check_nm(self) -> None:
        if self.kind != "nm":
            if self.n or self.m:
                raise ValueError(f"n and m do not belong to kind {self.kind}")
        elif self.m not in GROUPS or not 0 < self.n < self.m:
            raise ValueError(f"{self.n}:{self.m} is no N:M with M in {GROUPS} and 0 < N < M")

    @property
    def row_blocks(self) -> int:
        """R: row blocks of 16 rows."""
        return -(-self.shape[0] // TILE_ROWS)

    @property
    def column_tiles(self) -> int:
        """C: tiles of 64 columns in a row block."""
        return -(-self.shape[1] // TILE_COLUMNS)

    @property
    def scale_groups(self) -> int:
        """G: scales of one row; 0 without quantised values."""
        if not self.values.quantised:
            return 0
        return -(-self.shape[1] // self.group) if self.group else 1

    def tensors(self, slots: int | None = None) -> dict[str, tuple[DType, tuple[int, ...]]]:
        """Type and shape of every part.

        Args:
            slots: stored values of a ragged linear, padding included: `starts[-1]`. Left out, it
                is `nnz`, which only int4 may differ from.

        Raises:
            ValueError: ragged int4 without `slots`.
        """
        blocks = (self.row_blocks, self.column_tiles)
        found: dict[str, tuple[DType, tuple[int, ...]]] = {}
        if self.kind != "dense":
            found["mask"] = (DType.U8, (*blocks, TILE // 8))
        found["values"] = (self.values.dtype, self._values_shape(slots))
        if self.kind == "ragged":
            found["offsets"] = (DType.I32, blocks)
            found["starts"] = (DType.I64, (blocks[0] + 1,))
        if self.values.quantised:
            found["scales"] = (DType.BF16, (self.shape[0], self.scale_groups))
        return found

    def _values_shape(self, slots: int | None) -> tuple[int, ...]:
        half = 2 if self.values is ValueType.INT4 else 1
        if self.kind == "dense":
            return self.shape[0], -(-self.shape[1] // half)
        if self.kind == "nm":
            return self.row_blocks, self.column_tiles, TILE * self.n // self.m // half
        if slots is None and half == 2:
            raise ValueError("the slots of ragged int4 do not follow from nnz")
        return ((self.nnz if slots is None else slots) // half,)

    def to_json(self) -> dict[str, Any]:
        """The entry of `layers` in config.json."""
        found: dict[str, Any] = {
            "kind": self.kind,
            "values": self.values.value,
            "shape": list(self.shape),
            "nnz": self.nnz,
        }
        if self.kind == "nm":
            found |= {"n": self.n, "m": self.m}
        return found | ({"group": self.group} if self.values.quantised else {})

    @classmethod
    def from_json(cls, module: str, raw: object, file: str = _CONFIG) -> PackedLinear:
        """Read an entry of `layers`; every key must be there and known.

        Raises:
            InputRefused: `packed-invalid`.
        """
        try:
            return _linear(_mapping(raw, "the entry"))
        except ValueError as error:
            raise InputRefused(
                "packed-invalid", str(error), expected=_EXPECTED, file=file, tensor=module
            ) from error


def most_kept(shape: tuple[int, int], n: int, m: int) -> int:
    """Most positions that a mask of `shape` can keep, under N:M where `m` is not 0."""
    return shape[0] * (capacity(shape[1], n, m) if m else shape[1])


@dataclass(frozen=True)
class PackedModel:
    """`quantization_config` of a packed folder: its linears by module name."""

    layers: Mapping[str, PackedLinear]

    @classmethod
    def parse(cls, raw: object, file: str = _CONFIG) -> PackedModel:
        """Read `quantization_config`; every key must be there and known.

        Raises:
            InputRefused: `packed-version` for another version of the format, `packed-invalid`
                for anything else, `header-invalid` or `limit-exceeded` for a module's name.
        """
        try:
            config = _mapping(raw, "quantization_config")
            _version(config, file)
            _keys(config, _MODEL_KEYS)
            if _one_of(config, "quant_method", (METHOD,)) and config["tile"] != _TILE:
                raise ValueError(f"tile is {config['tile']!r:.80}, not {_TILE}")
            layers = _mapping(config["layers"], "layers")
        except ValueError as error:
            raise InputRefused("packed-invalid", str(error), file=file) from error
        for module in layers:
            check_tensor_name(module, file)
        return cls({m: PackedLinear.from_json(m, entry, file) for m, entry in layers.items()})

    def to_json(self) -> dict[str, Any]:
        """`quantization_config` of config.json."""
        return {
            "quant_method": METHOD,
            "format": FORMAT,
            "version": VERSION,
            "tile": _TILE,
            "layers": {module: linear.to_json() for module, linear in self.layers.items()},
        }


_TILE = [TILE_ROWS, TILE_COLUMNS]
_MODEL_KEYS = {"quant_method", "format", "version", "tile", "layers"}
_EXPECTED = "an entry as docs/formats/packed.md gives it"


def _version(config: Mapping[str, Any], file: str) -> None:
    """First of all: a later version may have other keys."""
    found = config.get("version")
    if config.get("format") != FORMAT or type(found) is not int or found != VERSION:
        raise InputRefused(
            "packed-version",
            f"format {config.get('format')!r:.80}, version {found!r:.80}",
            expected=f"format {FORMAT!r}, version {VERSION}",
            file=file,
        )


def _linear(raw: Mapping[str, Any]) -> PackedLinear:
    kind = cast("Kind", _one_of(raw, "kind", KINDS))
    values = ValueType(_one_of(raw, "values", tuple(v.value for v in ValueType)))
    extra = {"n", "m"} if kind == "nm" else set[str]()
    extra |= {"group"} if values.quantised else set[str]()
    _keys(raw, {"kind", "values", "shape", "nnz"} | extra)
    shape = raw["shape"]
    if not isinstance(shape, list | tuple) or len(cast("list[Any]", shape)) != 2:
        raise ValueError(f"shape is {shape!r:.80}, not [out, in]")
    rows, columns = (_whole(extent, "shape") for extent in cast("list[Any]", shape))
    counts = {key: _whole(raw[key], key) for key in ("nnz", *sorted(extra))}
    return PackedLinear(kind, values, (rows, columns), **counts)


def _mapping(raw: object, what: str) -> Mapping[str, Any]:
    if not isinstance(raw, dict) or not all(
        isinstance(k, str) for k in cast("dict[Any, Any]", raw)
    ):
        raise ValueError(f"{what} is no JSON object")
    return cast("dict[str, Any]", raw)


def _keys(raw: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(raw) - known):
        raise ValueError(f"unknown key {unknown[0]!r:.80}")
    if missing := sorted(known - set(raw)):
        raise ValueError(f"{missing[0]} is missing")


def _one_of(raw: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    found = raw.get(key)
    if not isinstance(found, str) or found not in allowed:
        raise ValueError(f"{key} is {found!r:.80}, not one of {', '.join(allowed)}")
    return found


def _whole(found: object, key: str) -> int:
    if type(found) is not int:
        raise ValueError(f"{key} is {found!r:.80}, no whole number")
    return found
