"""What of a published folder can be proved without its source: bytes, tensors, zeros."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from exporter.arch.spec import artefact_spec
from exporter.contract import Progress, StoredTensor, Target
from exporter.errors import VerificationFailed
from exporter.store.jsonio import read_json
from exporter.store.manifest import Manifest, check_files, read_manifest
from exporter.verify.files import META, list_files
from exporter.verify.result import StructureResult
from exporter.verify.structure import block_rows

REPORT = f"{META}/report.json"


def check_published(
    target: Target, folder: Path, progress: Progress | None = None
) -> StructureResult:
    """Every file against the manifest, every tensor as read back against the manifest's digest,
    and the zeros of all linears against the report. Tensor misses stand in `failures`.

    Raises:
        VerificationFailed: `verify-hash` for a file; `manifest-invalid` for a report of another
            form; `verify-structure` where the target cannot read the files back.
        InputRefused: `manifest-invalid`, `input-missing`.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    recorded = _recorded_zeros(folder)
    spec = artefact_spec(read_json(folder / "config.json"))
    linears = {linear.weight for linear in spec.linears()}
    failures, names, sizes, zeros = [], list[str](), 0, 0
    for stored in target.read_back(folder):
        names.append(stored.name)
        sizes += stored.nbytes
        if manifest.outputs.tensors.get(stored.name) != stored.sha256():
            failures.append(f"{stored.name} is not the tensor that the manifest lists")
        if stored.name in linears:
            zeros += count_zero_values(stored)
        if progress is not None:
            progress("re-read", len(names), len(manifest.outputs.tensors))
    failures += _odd_names(names, manifest)
    if zeros != recorded:
        failures.append(f"{zeros} zeros in the linears, the report counted {recorded}")
    files, _ = list_files(folder)
    total = sum(files.values())
    return StructureResult(
        tensors=len(names),
        compared_values=0,
        linears=0,
        zeros=0,
        kept_zeros=0,
        zero_values=zeros,
        tensor_bytes=sizes,
        file_bytes=total,
        ratio=total / max(1, sizes),
        files=tuple(files),
        failures=tuple(failures),
    )


def count_zero_values(stored: StoredTensor) -> int:
    """Values equal to zero, row block by row block."""
    step, count = block_rows(stored.shape), stored.shape[0]
    blocks = (stored.rows(r0, min(r0 + step, count)) for r0 in range(0, count, step))
    return sum(int(np.count_nonzero(block == 0)) for block in blocks)


def _odd_names(names: Iterable[str], manifest: Manifest) -> list[str]:
    found = Counter(names)
    twice = sorted(name for name, times in found.items() if times > 1)
    missing = sorted(manifest.outputs.tensors.keys() - found.keys())
    return [f"{n} is stored twice" for n in twice] + [f"{n} is missing" for n in missing]


def _recorded_zeros(folder: Path) -> int:
    report: Any = read_json(folder / REPORT)
    try:
        value = report["verification"]["structure"]["zero_values"]
    except (KeyError, TypeError, IndexError):
        value = None
    if not isinstance(value, int):
        raise VerificationFailed("manifest-invalid", "no count of zeros", file=REPORT)
    return value
