"""SPP: a row factor and a column factor that multiply the weight itself.

Source: SPP (Lu et al. 2024, arXiv 2405.16057), public code Lucky-Lance/SPP,
peft/src/peft/tuners/lora.py, `DiagonalLinear` and `Linear.train`:
`W' = W + s * W . (rep(a) * c)`, a `[16, in]`, c `[out, 1]`, `s = lora_alpha / r`.
Format: docs/formats/spp.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.biases import check_biases
from exporter.adapters.identity import base_facts
from exporter.adapters.names import PREFIX, PeftName
from exporter.adapters.own_files import require_shape
from exporter.adapters.peft_config import Files, check_targets
from exporter.adapters.peft_files import (
    WEIGHTS,
    PeftFolder,
    open_peft,
    peft_type,
    write_peft,
)
from exporter.adapters.replacements import read_replacements
from exporter.adapters.spp_config import ROWS, SppConfig, parse_spp_config
from exporter.adapters.spp_delta import SppDelta
from exporter.adapters.tensors import TensorFile, largest_magnitude
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.store.dtypes import F32
from exporter.store.header import read_header

_A, _COL = "lora_A.weight", "lora_A.weight_col"
_MARKS = ("lora_A.",)
_FLOAT32_MAX = 3.4e38


class SppFamily:
    """Reads an SPP folder. Its config says LORA, so the tensor names tell it from one."""

    name: ClassVar[str] = "spp"

    def claims(self, folder: Path) -> bool:
        """Whether the config says SPP, or LORA over a file with column factors."""
        kind = peft_type(folder)
        if kind == "SPP":
            return True
        file = folder / WEIGHTS
        if kind != "LORA" or not file.is_file():
            return False
        return any(n.endswith(f".{_COL}") for n in read_header(file).entries)

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly; every tensor of the file is used exactly once.

        Raises:
            InputRefused: the `adapter-*` codes, `value-not-finite`, `value-overflow`,
                `pickle-refused` and those of the file formats.
        """
        opened = open_peft(folder, _MARKS)
        config = parse_spp_config(opened.config, opened.config_file)
        pairs = _pairs(opened)
        shapes = _shapes(pairs, spec, opened.tensors)
        files = Files(opened.config_file, opened.tensors.label)
        check_targets({m: p[_A] for m, p in pairs.items()}, config, shapes, spec, files)
        deltas, nonzero = _deltas(pairs, shapes, config.scale, opened.tensors)
        replaced = read_replacements(opened.names, config, spec, opened.tensors)
        check_biases(replaced.items, pairs, config, spec, opened.tensors.label)
        if not nonzero and not replaced.items:
            raise InputRefused(
                "adapter-empty",
                f"the delta of all {len(pairs)} modules is zero (c is all zeros before training)",
                expected="a trained adapter",
                file=opened.tensors.label,
            )
        named = base_facts(
            config.base_model_name_or_path, config.base_sha256, base, opened.config_file
        )
        return Adapter(
            family=self.name,
            name=folder.name or folder.resolve().name,
            deltas=deltas,
            replacements=replaced.items,
            masked=True,
            unties=replaced.unties,
            tensors_used=2 * len(pairs) + replaced.tensors,
            facts={
                **named,
                "scale": config.scale,
                "rows": ROWS,
                "zero_deltas": len(pairs) - nonzero,
            },
        )


def _pairs(opened: PeftFolder) -> dict[str, dict[str, str]]:
    """Tensor names by module and part."""
    found: dict[str, dict[str, str]] = {}
    for name in opened.names:
        if name.part.startswith(_MARKS):
            _known(name, opened.tensors.label)
            found.setdefault(name.module, {})[name.part] = name.tensor
    for module, parts in found.items():
        lacking = {_A, _COL} - parts.keys()
        if lacking:
            raise InputRefused(
                "adapter-tensor-missing",
                f"{', '.join(parts)} without {lacking.pop()}",
                expected=f"{_A} and {_COL}",
                file=opened.tensors.label,
                tensor=module,
            )
    return found


def _known(name: PeftName, file: str) -> None:
    if name.part not in (_A, _COL):
        raise InputRefused(
            "adapter-tensor-unused",
            "no part of SPP has this name",
            expected=f"{_A} or {_COL}",
            file=file,
            tensor=name.tensor,
        )


def _shapes(
    pairs: Mapping[str, Mapping[str, str]], spec: ModelSpec, tensors: TensorFile
) -> dict[str, tuple[int, int]]:
    shapes = {li.module: (li.out_features, li.in_features) for li in spec.linears()}
    strange = [m for m in pairs if m not in shapes]
    if strange:
        raise InputRefused(
            "adapter-module",
            f"the {spec.family} base has no linear of this name "
            f"({len(strange)} of {len(pairs)} modules)",
            expected="modules of the base",
            file=tensors.label,
            tensor=strange[0],
        )
    for module, parts in pairs.items():
        out, width = shapes[module]
        if out % ROWS:
            raise InputRefused(
                "adapter-shape",
                f"{out} outputs are no multiple of {ROWS}",
                expected=f"each of the {ROWS} rows of a over equally many rows of W",
                file=tensors.label,
                tensor=module,
            )
        require_shape(tensors, parts[_A], (ROWS, width), "[16, in]")
        column = parts[_COL]
        if tensors.entries[column].shape != (1, out):  # the low-memory variant's
            require_shape(tensors, column, (out, 1), "[out, 1] or [1, out]")
    return shapes


def _deltas(
    pairs: Mapping[str, Mapping[str, str]],
    shapes: Mapping[str, tuple[int, int]],
    scale: float,
    tensors: TensorFile,
) -> tuple[dict[str, SppDelta], int]:
    """Deltas by module, and how many are other than zero."""
    deltas: dict[str, SppDelta] = {}
    nonzero = 0
    for module, parts in pairs.items():
        top = abs(scale) * largest_magnitude(tensors, parts[_A])
        top *= largest_magnitude(tensors, parts[_COL])
        if top > _FLOAT32_MAX:
            raise InputRefused(
                "value-overflow",
                f"s * a * c may reach {top:.3g}",
                expected="values that fit float32",
                file=tensors.label,
                tensor=module,
                hint="Check alpha and the factors: training has diverged.",
            )
        nonzero += top > 0.0
        deltas[module] = SppDelta(
            shapes[module], tensors.float32(parts[_A]), tensors.float32(parts[_COL]), scale
        )
    return deltas, nonzero


def write_spp(
    folder: Path,
    *,
    factors: Mapping[str, tuple[F32, F32]],
    alpha: float = 16,
    r: int = 8,
    base_name: str | None = None,
    base_sha256: str | None = None,
) -> None:
    """Write an SPP folder as the public code lays it out, in safetensors.

    Args:
        folder: new or empty.
        factors: module -> (a `[16, in]`, c `[out, 1]`), float32.
        alpha: numerator of the scale.
        r: its denominator, and nothing else: a always has 16 rows.
        base_name: name of the sparse base, for people.
        base_sha256: digest of the sparse base, checked by our reader.

    Raises:
        InputRefused: `adapter-shape`, `output-failed`.
    """
    for module, (a, c) in factors.items():
        if a.ndim != 2 or len(a) != ROWS or c.ndim != 2 or c.shape[1] != 1 or len(c) % ROWS:
            raise InputRefused(
                "adapter-shape",
                f"a {list(a.shape)}, c {list(c.shape)}",
                expected="a [16, in] and c [out, 1], out a multiple of 16",
                tensor=module,
            )
    config: dict[str, Any] = SppConfig(
        r=r,
        lora_alpha=alpha,
        target_modules=sorted(factors),
        base_model_name_or_path=base_name,
        base_sha256=base_sha256,
    ).model_dump(exclude_none=True)
    tensors = {
        f"{PREFIX}{module}.{part}": np.ascontiguousarray(values)
        for module, pair in sorted(factors.items())
        for part, values in zip((_A, _COL), pair, strict=True)
    }
    write_peft(folder, {"peft_type": "LORA", "task_type": "CAUSAL_LM", **config}, tensors)
