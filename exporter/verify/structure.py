"""Re-read a staged folder and compare it, bit for bit, with the fused model computed again.

Row block by row block: memory is two blocks and the packed mask of one linear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from exporter.contract import LowerPlan, Progress, StoredTensor, Target
from exporter.model import FusedModel, FusedTensor
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import F32, DType, round_float32, to_float32
from exporter.verify.branches import Branches
from exporter.verify.diagnose import explain_shape, explain_values, same_bits
from exporter.verify.files import check_file_set, list_files
from exporter.verify.packed import PackedTally, StoredMask, packing_faults
from exporter.verify.result import StructureResult
from exporter.verify.ulp import HALF_ULP, rounding_ulp

BLOCK_BYTES = 8 << 20  # of float32 rows
SLACK = 1.02  # files may be this much larger than the tensors they hold,
SLACK_BYTES = 1 << 20  # may hold a graph or an index besides,
SLACK_PER_TENSOR = 4096  # and may align each tensor to a page
_SHOWN = 16


@dataclass
class _Tally:
    tensor_bytes: int = 0
    compared: int = 0
    linears: int = 0
    zeros: int = 0
    kept_zeros: int = 0
    zero_values: int = 0
    rounding_ulp: float = 0.0
    packed: PackedTally = field(default_factory=PackedTally)
    seen: dict[str, str] = field(default_factory=dict)  # name -> file
    failures: list[str] = field(default_factory=list)


def check_structure(
    target: Target, model: FusedModel, folder: Path, progress: Progress | None = None
) -> StructureResult:
    """Names, shapes, types, values, zeros and files of a staged artefact.

    The misses stand in `failures`; nothing is raised for them.

    Raises:
        SparseExportError: the target could not read its own files back.
    """
    tally, branches, plan = _Tally(), Branches(model), target.plan(model)
    for stored in target.read_back(folder):
        _check_tensor(stored, model, branches, plan, tally)
        if progress is not None:
            progress("re-read", len(tally.seen), len(model.tensors))
    tally.failures += [f"{n} is missing" for n in model.tensors if n not in tally.seen]
    tally.failures += branches.missing()
    sizes = _check_files(plan, model, folder, tally)
    total = sum(sizes.values())
    shown, more = tally.failures[:_SHOWN], len(tally.failures) - _SHOWN
    return StructureResult(
        tensors=len(tally.seen),
        compared_values=tally.compared,
        linears=tally.linears,
        zeros=tally.zeros,
        kept_zeros=tally.kept_zeros,
        zero_values=tally.zero_values,
        rounding_ulp=tally.rounding_ulp,
        tensor_bytes=tally.tensor_bytes,
        file_bytes=total,
        ratio=total / max(1, tally.tensor_bytes),
        files=tuple(sizes),
        packed=tally.packed.result(),
        failures=(*shown, *([f"and {more} more"] if more > 0 else ())),
    )


def block_rows(shape: tuple[int, ...]) -> int:
    """Rows of axis 0 that make one block."""
    return max(1, BLOCK_BYTES // max(1, 4 * math.prod(shape[1:])))


def parse_dtype(name: str) -> DType | None:
    """A stored type by its safetensors or numpy name; None if it cannot hold a weight."""
    names = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    try:
        dtype = DType(names.get(name.lower(), name.upper()))
    except ValueError:
        return None
    return dtype if dtype.is_weight else None


def _check_tensor(
    stored: StoredTensor, model: FusedModel, branches: Branches, plan: LowerPlan, tally: _Tally
) -> None:
    name = stored.name
    tally.tensor_bytes += stored.nbytes
    if name in tally.seen:
        tally.failures.append(f"{name} is stored twice, in {tally.seen[name]} and {stored.file}")
        return
    tally.seen[name] = stored.file
    tensor = model.tensors.get(name)
    if tensor is None:
        ours = branches.claims(name)
        tally.failures += branches.check(stored) if ours else _unexpected(stored, model)
        return
    # Codes times scales are exact in float32: nothing was rounded.
    quantised = stored.packing is not None and stored.packing.quantised
    dtype = DType.F32 if quantised else parse_dtype(stored.dtype)
    if dtype is None:
        tally.failures.append(f"{name} is stored as {stored.dtype}")
    elif stored.shape != tensor.shape:
        why = explain_shape(stored.shape, tensor.shape)
        want = list(tensor.shape)
        tally.failures.append(f"{name} has shape {list(stored.shape)}, not {want}: {why}")
    elif not stored.packing and stored.nbytes != math.prod(stored.shape) * dtype.nbytes:
        tally.failures.append(f"{name} takes {stored.nbytes} bytes, which its shape does not")
    elif faults := packing_faults(stored, tensor, plan):
        tally.failures += faults
    else:
        tally.packed.add(stored, model)
        _check_values(stored, tensor, dtype, model, tally)


def _unexpected(stored: StoredTensor, model: FusedModel) -> list[str]:
    if model.tied and stored.name == model.spec.head:
        return [f"{stored.name} is stored though it is tied to {model.spec.embedding}"]
    return [f"{stored.name} ({stored.file}) is no tensor of the model"]


def _check_values(
    stored: StoredTensor, tensor: FusedTensor, dtype: DType, model: FusedModel, tally: _Tally
) -> None:
    """Values and zeros of one tensor; at most one failure of each kind."""
    mask = model.mask(tensor.name) if tensor.linear is not None else None
    stored_mask = StoredMask(stored.packing, mask) if stored.packing else None
    step, bad_zeros, wrong, ulp = block_rows(tensor.shape), 0, "", 0.0
    for r0 in range(0, tensor.shape[0], step):
        r1 = min(r0 + step, tensor.shape[0])
        got = stored.rows(r0, r1)
        fused = tensor.rows(r0, r1)
        want = to_float32(round_float32(fused, dtype, tensor=tensor.name))
        if stored.packing is not None and stored.packing.plus_zero:
            want = want + np.float32(0)  # -0.0 + 0.0 is +0.0, and all else stays
        ulp = max(ulp, rounding_ulp(got, fused, dtype))
        if not wrong and not same_bits(got, want):
            wrong = explain_values(stored, tensor, model, r0, got, want)
        if tensor.linear is not None:
            tally.zero_values += int(np.count_nonzero(got == 0))
        if mask is not None:
            bad_zeros += _count_zeros(got, mask, r0, r1, tally)
        if stored_mask is not None:
            stored_mask.compare(r0, r1)
    tally.compared += math.prod(tensor.shape)
    tally.linears += mask is not None
    tally.failures += stored_mask.failures(stored.name) if stored_mask else []
    if bad_zeros:
        tally.failures.append(f"{stored.name}: {bad_zeros} values outside the mask are not zero")
    if wrong:
        tally.failures.append(f"{stored.name} is not the fused tensor: {wrong}")
    elif ulp > HALF_ULP:
        tally.failures.append(f"{stored.name}: a value is {ulp:.3g} ULP from the fused one")
    tally.rounding_ulp = max(tally.rounding_ulp, ulp)


def _count_zeros(got: F32, mask: Mask, r0: int, r1: int, tally: _Tally) -> int:
    """Values outside the mask that are not exactly +0.0; the zeros go into the tally."""
    kept = mask.rows(r0, r1)
    live = np.ascontiguousarray(got).view(np.uint32) != 0
    bad = int(np.count_nonzero(live & ~kept))
    tally.zeros += int(np.count_nonzero(~kept)) - bad
    tally.kept_zeros += int(np.count_nonzero(kept & (got == 0)))
    return bad


def _check_files(
    plan: LowerPlan, model: FusedModel, folder: Path, tally: _Tally
) -> Mapping[str, int]:
    """Sizes of all files; strays and bytes that no tensor accounts for become failures."""
    files, odd = list_files(folder)
    planned = {f.name: f.nbytes for f in plan.files}
    carried = {s.name for s in model.checked.checkpoint.sidecars} | {"config.json"}
    tally.failures += check_file_set(files, odd, planned, carried)
    holders = set(tally.seen.values()) & files.keys()
    held = sum(files[name] for name in holders)
    if held > SLACK * tally.tensor_bytes + SLACK_BYTES + SLACK_PER_TENSOR * len(tally.seen):
        tally.failures.append(
            f"{', '.join(sorted(holders))}: {held} bytes for {tally.tensor_bytes} bytes of "
            "tensors: something is stored twice"
        )
    for name in sorted(holders & planned.keys()) if plan.packed else ():
        if files[name] != planned[name]:
            tally.failures.append(f"{name}: {files[name]} bytes, {planned[name]} were counted")
    for name in sorted((planned.keys() - carried - holders) & files.keys()):
        if files[name] > SLACK * planned[name] + SLACK_BYTES:
            tally.failures.append(f"{name}: {files[name]} bytes, {planned[name]} were planned")
    return files
