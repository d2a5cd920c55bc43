"""Lowering: plan the files, write the graph, stream the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from backends.decoder_graph.build import build_graph
from backends.decoder_graph.layout import BLOCK_BYTES, Slot, data_layout
from backends.decoder_graph.options import GraphOptions
from exporter.contract import LowerPlan, PlannedFile, Progress
from exporter.errors import InputRefused
from exporter.model import FusedModel
from exporter.store.writer import RawWriter


def lower_decoder(
    model: FusedModel, folder: Path, options: GraphOptions, progress: Progress | None = None
) -> None:
    """Write `options.graph_file` and `options.data_file` into `folder`.

    Weights are float32; a linear is stored transposed, `[in, out]`. Peak memory is the largest
    linear and a few row blocks, whatever the model's size. Equal models give equal bytes.

    Raises:
        InputRefused: `target-refused`, `value-overflow`, and what reading the model raises.
        UsageError: `target-option`.
    """
    slots = data_layout(model, options)
    graph = _graph(model, slots, options)
    _write(folder / options.graph_file, [_bytes(graph)])
    del graph
    total, done = data_bytes(slots), 0
    writer = RawWriter(folder / options.data_file)
    try:
        for slot in slots:
            writer.pad_to(slot.alignment)
            for block in slot.blocks():
                writer.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
                done += block.nbytes
                if progress is not None:
                    progress("weights", done, total)
    finally:
        writer.close()


def plan_decoder(model: FusedModel, options: GraphOptions) -> LowerPlan:
    """Exact sizes of both files and a bound on memory, from headers alone.

    Raises:
        InputRefused: `target-refused`.
        UsageError: `target-option`.
    """
    slots = data_layout(model, options)
    graph_bytes = len(_bytes(_graph(model, slots, options)))
    files = (
        PlannedFile(options.graph_file, graph_bytes),
        PlannedFile(options.data_file, data_bytes(slots)),
    )
    # A transposed tensor is whole in memory; beside it a block as stored, in float32 and merged.
    held = max(slot.nbytes if slot.transposed else BLOCK_BYTES for slot in slots)
    actions = {slot.name: slot.action for slot in slots}
    return LowerPlan(files, held + 3 * BLOCK_BYTES + 4 * graph_bytes, actions)


def data_bytes(slots: Sequence[Slot]) -> int:
    """Size of the data file."""
    return slots[-1].offset + slots[-1].nbytes


def _graph(model: FusedModel, slots: Sequence[Slot], options: GraphOptions) -> onnx.ModelProto:
    graph = build_graph(model.spec, slots, options, tied=model.tied)
    _refuse_unused(graph, {slot.name: slot for slot in slots})
    return graph


def _refuse_unused(graph: onnx.ModelProto, slots: Mapping[str, Slot]) -> None:
    """A tensor that no node reads would be dropped in silence."""
    used = {name for node in graph.graph.node for name in node.input}
    for name in slots:
        if name not in used:
            raise InputRefused(
                "target-refused", "the decoder graph has no place for this tensor", tensor=name
            )


def _bytes(graph: onnx.ModelProto) -> bytes:
    return graph.SerializeToString(deterministic=True)


def _write(path: Path, parts: Sequence[bytes]) -> None:
    writer = RawWriter(path)
    try:
        for part in parts:
            writer.write(part)
    finally:
        writer.close()
