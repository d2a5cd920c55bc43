"""Checkpoint -> CheckedModel: all rules, headers first, then one pass over every value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from exporter.arch.model_spec import ModelSpec
from exporter.arch.spec import load_spec
from exporter.check.arrange import arranged
from exporter.check.blocks import blocks
from exporter.check.dtypes import check_dtypes, dtype_notes
from exporter.check.masks import Disagreement, FileMasks, ZerosMasks, linear_shapes
from exporter.check.names import account
from exporter.check.packed import packed_rows
from exporter.check.shapes import check_shapes
from exporter.check.ties import check_tie
from exporter.check.values import Scanner, ValueCounts
from exporter.check.vocab import check_vocab
from exporter.contract import Progress
from exporter.model import CheckedModel, MaskSource, Note
from exporter.sparsity.count import PatternCounter
from exporter.sparsity.mask import Mask
from exporter.sparsity.pattern import LinearPattern
from exporter.store.checkpoint import Checkpoint
from exporter.store.masks import MasksFile, Shape

_THREADS = min(4, os.cpu_count() or 1)  # beyond four, memory is the limit


def check_model(
    checkpoint: Checkpoint, *, masks: Path | None = None, progress: Progress | None = None
) -> CheckedModel:
    """Check everything that can be known before an adapter is read.

    Every value is read once; each thread holds a few MiB and a packed mask. Without `masks` the
    mask of a linear is where its weight is not zero.

    Raises:
        InputRefused: `arch-unsupported`, `config-invalid`, `model-quantised`,
            `dtype-unsupported`, `tensor-missing`, `tensor-unexpected`, `tensor-shape`,
            `vocab-mismatch`, `tie-conflict`, `value-not-finite`, `value-overflow`,
            `mask-invalid`, `mask-mismatch`.
    """
    spec = load_spec(checkpoint.config)
    checkpoint = arranged(checkpoint, spec)
    check_dtypes(checkpoint)
    dropped = account(checkpoint, spec)
    check_vocab(checkpoint, spec)
    check_shapes(checkpoint, spec)
    source: MaskSource = ZerosMasks(checkpoint)
    if masks is not None:
        source = FileMasks(MasksFile.open(masks, linear_shapes(spec)))
    patterns, notes = _read_values(checkpoint, spec, source, progress)
    check_tie(checkpoint, spec)
    return CheckedModel(
        checkpoint=checkpoint,
        spec=spec,
        patterns=patterns,
        masks=source,
        head_is_tied=spec.tied,
        dropped=dropped,
        notes=(*dtype_notes(checkpoint, spec), *notes),
    )


def _read_values(
    checkpoint: Checkpoint, spec: ModelSpec, source: MaskSource, progress: Progress | None
) -> tuple[Mapping[str, LinearPattern], tuple[Note, ...]]:
    linears = {linear.weight: linear for linear in spec.linears()}
    names = list(spec.tensors())

    def read(name: str) -> tuple[LinearPattern | None, list[Note]]:
        linear = linears.get(name)
        if linear is None:
            return None, read_tensor(checkpoint, name)
        mask = None if isinstance(source, ZerosMasks) else source.mask(linear)
        shape = (linear.out_features, linear.in_features)
        return read_linear(checkpoint, linear.module, shape, mask, source.origin)

    total = sum(checkpoint.entries[name].nbytes for name in names)
    patterns: dict[str, LinearPattern] = {}
    notes: list[Note] = []
    done = 0
    # Threads, since numpy lets go of the interpreter lock; results and faults come in order.
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, (pattern, found) in zip(names, pool.map(read, names), strict=True):
            notes += found
            if pattern is not None:
                patterns[pattern.module] = pattern
            done += checkpoint.entries[name].nbytes
            if progress is not None:
                progress("check values", done, total)
    return patterns, tuple(notes)


def read_tensor(checkpoint: Checkpoint, tensor: str) -> list[Note]:
    """Check the values of a tensor that is no linear.

    Raises:
        InputRefused: `value-not-finite`, `value-overflow`.
    """
    entry = checkpoint.entries[tensor]
    scanner = Scanner(tensor, entry.dtype.numpy, entry.file)
    for r0, rows in blocks(checkpoint, tensor):
        scanner.scan(rows, r0)
    return _notes(tensor, scanner.counts)


def read_linear(
    checkpoint: Checkpoint, module: str, shape: Shape, mask: Mask | None, origin: str
) -> tuple[LinearPattern, list[Note]]:
    """Check the values of a linear `[out, in]`, however stored, and judge its mask's pattern.

    Without a mask (None) the weights' zeros are the mask; `origin` names it in messages.

    Raises:
        InputRefused: `value-not-finite`, `value-overflow`, `mask-mismatch`.
    """
    tensor = f"{module}.weight"
    entry = checkpoint.entries[tensor]
    scanner = Scanner(tensor, entry.dtype.numpy, entry.file)
    counts, counter = scanner.counts, PatternCounter(module, shape)
    compared = Disagreement(tensor, origin)
    before = 0
    for r0, bits in packed_rows(checkpoint, tensor, scanner):
        if mask is None:
            counter.add(bits, counts.nonzero - before)
            before = counts.nonzero
        else:
            kept = mask.bits[r0 : r0 + len(bits)]
            compared.add(r0, bits, kept)
            counter.add(kept)
    pattern = counter.result()
    compared.settle(shape[0] * shape[1] - pattern.kept)
    notes = _notes(tensor, counts)
    if 0 < pattern.zero_rows < shape[0]:
        notes.append(Note(tensor, "zero-rows", pattern.zero_rows))
    if compared.kept_zeros:
        notes.append(Note(tensor, "kept-zeros", compared.kept_zeros))
    return pattern, notes


def _notes(tensor: str, counts: ValueCounts) -> list[Note]:
    notes: list[Note] = []
    if counts.negative_zeros:
        notes.append(Note(tensor, "negative-zeros", counts.negative_zeros))
    if counts.denormals:
        notes.append(Note(tensor, "denormals", counts.denormals))
    if counts.values and not counts.nonzero and not tensor.endswith(".bias"):
        notes.append(Note(tensor, "all-zero", counts.values))
    return notes
