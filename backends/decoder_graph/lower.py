"""Lowering: plan the files, write the graph, stream the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from backends.companions import write_file
from backends.decoder_graph.build import build_graph
from backends.decoder_graph.layout import BLOCK_BYTES, Slot, data_layout
from backends.decoder_graph.narrow import decoder_spec
from backends.decoder_graph.options import GraphOptions
from backends.decoder_graph.packed import packed_linears
from backends.vllm.choose import Chosen
from backends.vllm.lower import packing_bytes
from exporter.contract import LowerPlan, PlannedFile, Progress
from exporter.errors import InputRefused
from exporter.model import FusedModel
from exporter.store.writer import RawWriter

WRITER_BYTES = 20 << 20  # RawWriter's queue and the chunk in hand


def lower_decoder(
    model: FusedModel, folder: Path, options: GraphOptions, progress: Progress | None = None
) -> None:
    """Write `options.graph_file` and `options.data_file` into `folder`.

    Weights are float32; a linear is stored transposed, `[in, out]`, or packed where the options
    ask for it. Peak memory is the largest linear and a few row blocks, whatever the model's size.
    Equal models give equal bytes.

    Raises:
        InputRefused: `target-refused`, `value-overflow`, and what reading the model raises.
        UsageError: `target-option`.
    """
    packed = packed_linears(model, options)
    slots = data_layout(model, packed)
    graph = _graph(model, slots, options, packed)
    write_file(folder / options.graph_file, _bytes(graph))
    del graph
    total, done = data_bytes(slots), 0
    with RawWriter(folder / options.data_file) as writer:
        for slot in slots:
            writer.pad_to(slot.alignment)
            # A call of its own, so that the last block is freed before the next is made.
            _write_slot(writer, slot)
            done += slot.nbytes
            if progress is not None:
                progress("weights", done, total)
        writer.close()


def _write_slot(writer: RawWriter, slot: Slot) -> None:
    for block in slot.blocks():
        writer.write(np.ascontiguousarray(block))


def plan_decoder(model: FusedModel, options: GraphOptions) -> LowerPlan:
    """Exact sizes of both files and a bound on memory, from headers alone.

    Raises:
        InputRefused: `target-refused`.
        UsageError: `target-option`.
    """
    packed = packed_linears(model, options)
    slots = data_layout(model, packed)
    graph_bytes = len(_bytes(_graph(model, slots, options, packed)))
    files = (
        PlannedFile(options.graph_file, graph_bytes),
        PlannedFile(options.data_file, data_bytes(slots)),
    )
    # A transposed tensor is whole in memory; beside it a block as stored, in float32 and merged,
    # and what waits for the writer's hash.
    held = max(slot.nbytes if slot.transposed else BLOCK_BYTES for slot in slots)
    held = max(held + 3 * BLOCK_BYTES, packing_bytes(packed.values()) if packed else 0)
    return LowerPlan(
        files=files,
        peak_bytes=held + WRITER_BYTES + 4 * graph_bytes,
        actions={slot.tensor: slot.action for slot in slots},
        packed={name: each.nbytes for name, each in packed.items()},
    )


def data_bytes(slots: Sequence[Slot]) -> int:
    """Size of the data file."""
    return slots[-1].offset + slots[-1].nbytes


def _graph(
    model: FusedModel, slots: Sequence[Slot], options: GraphOptions, packed: Mapping[str, Chosen]
) -> onnx.ModelProto:
    specs = {each.linear.module: each.spec for each in packed.values()}
    graph = build_graph(decoder_spec(model.spec), slots, options, tied=model.tied, packed=specs)
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
