"""Re-read a packed folder: headers by the strict reader of inputs, values by `packed.unpack`.

Neither shares code with `packed.pack` and the writer. The safetensors library opens every file
too, but reads no value: its numpy side (0.8.0) has no fp8, and slices no tensor without elements.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from backends.packed.check import check
from backends.packed.spec import PackedLinear, PackedModel, Parts
from backends.packed.unpack import dense, kept
from exporter.arch.spec import artefact_spec
from exporter.contract import Packing, StoredTensor
from exporter.errors import InputRefused, VerificationFailed
from exporter.sparsity.mask import Bools
from exporter.store.checkpoint import Checkpoint
from exporter.store.dtypes import F32

_PARTS = ("mask", "values", "offsets", "starts", "scales")


def read_back(folder: Path) -> Iterator[StoredTensor]:
    """Every weight: packed linears first, in the order of their names, then the plain tensors.

    Raises:
        VerificationFailed: `verify-structure` for a folder that the format's own rules refuse:
            files, index, config, or parts that contradict one another.
    """
    try:
        opened = Checkpoint.open(folder)
        artefact_spec(opened.config)
        packed = PackedModel.parse(opened.config.get("quantization_config"))
        _agree_with_library(folder, opened)
        taken: set[str] = set()
        for module, spec in packed.layers.items():
            linear = _Linear(opened, module, spec)
            taken |= set(linear.names)
            yield linear.stored()
        for name in opened.entries:
            if name not in taken:
                yield _plain(opened, name)
    except InputRefused as error:
        raise VerificationFailed(
            "verify-structure",
            error.found,
            expected=error.expected or "a whole packed model",
            file=error.file,
            tensor=error.tensor,
        ) from error


def _agree_with_library(folder: Path, opened: Checkpoint) -> None:
    """What our reader of headers saw is what every other program will see."""
    found: dict[str, tuple[str, str, tuple[int, ...]]] = {}
    for file in sorted({entry.file for entry in opened.entries.values()}):
        try:
            with safe_open(folder / file, framework="numpy") as other:
                for name in other.keys():  # noqa: SIM118 - no mapping
                    part = other.get_slice(name)
                    found[name] = (file, part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise VerificationFailed("verify-structure", str(error)[:500], file=file) from error
    ours = {n: (e.file, e.dtype.value, e.shape) for n, e in opened.entries.items()}
    if ours != found:
        name = min(n for n in ours.keys() | found.keys() if ours.get(n) != found.get(n))
        raise VerificationFailed(
            "verify-structure", "the safetensors library reads another header", tensor=name
        )


def _plain(opened: Checkpoint, name: str) -> StoredTensor:
    entry = opened.entries[name]
    if not entry.shape:
        raise VerificationFailed(
            "verify-structure", "a scalar", expected="a weight", file=entry.file, tensor=name
        )
    return StoredTensor(
        name,
        entry.shape,
        entry.dtype.value,
        entry.file,
        entry.nbytes,
        lambda r0, r1: opened.rows(name, r0, r1),
        lambda: opened.tensor_sha256(name),
    )


@dataclass(frozen=True)
class _Linear:
    """One packed linear in the files."""

    opened: Checkpoint
    module: str
    spec: PackedLinear

    @property
    def names(self) -> Mapping[str, str]:
        """Tensor name -> part, of the parts that lie in the files."""
        named = {f"{self.module}.{part}": part for part in _PARTS}
        return {n: part for n, part in named.items() if n in self.opened.entries}

    @property
    def parts(self) -> Parts:
        """Windows of the mapped files: nothing is read until it is looked at."""
        return {part: self.opened.view(name) for name, part in self.names.items()}

    def rows(self, r0: int, r1: int) -> F32:
        """Weights `[r0:r1)`."""
        return dense(self.spec, self.parts, r0, r1)

    def kept(self, r0: int, r1: int) -> Bools:
        """The bits of the mask, fillers of N:M included, which `unpack.kept` leaves out."""
        bits = replace(self.spec, kind="ragged", n=0, m=0)
        return kept(bits, self.parts, r0, r1)

    def sha256(self) -> str:
        """Of each part's name and digest."""
        digest = hashlib.sha256()
        for name, part in self.names.items():
            digest.update(f"{part} {self.opened.tensor_sha256(name)}\n".encode())
        return digest.hexdigest()

    def stored(self) -> StoredTensor:
        """The weight, once its parts have passed the checks of the format."""
        found = [self.opened.entries[name] for name in self.names]
        file = found[0].file if found else None
        check(self.spec, self.parts, self.module, file)
        if any(entry.file != file for entry in found) or file is None:
            raise InputRefused("packed-invalid", "its parts lie in two files", tensor=self.module)
        return StoredTensor(
            f"{self.module}.weight",
            self.spec.shape,
            self.spec.values.dtype.value,
            file,
            sum(entry.nbytes for entry in found),
            self.rows,
            self.sha256,
            self._packing(),
        )

    def _packing(self) -> Packing:
        spec = self.spec
        return Packing(
            kind=f"{spec.n}:{spec.m}" if spec.kind == "nm" else spec.kind,
            values=spec.values.value,
            quantised=spec.values.quantised,
            kept=None if spec.kind == "dense" else self.kept,
            exact=spec.kind == "ragged",
        )
