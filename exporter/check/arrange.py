"""A checkpoint as its architecture sees it: names with their prefix, transposed linears known."""

from __future__ import annotations

from exporter.arch.model_spec import ModelSpec
from exporter.check.names import leftover
from exporter.store.checkpoint import Checkpoint


def arranged(checkpoint: Checkpoint, spec: ModelSpec) -> Checkpoint:
    """`checkpoint` by the names of `spec`, with `rows` of every linear as `[out, in]`.

    Transformers reads a body that was saved without its prefix ("wte.weight" for
    "transformer.wte.weight", as GPT-2's own checkpoints are); so do we, where the spec says that
    there are such checkpoints and the embedding goes by its bare name only.
    """
    prefix, names = spec.optional_prefix, checkpoint.entries
    bare: dict[str, str] = {}
    if prefix and spec.embedding not in names and spec.embedding.removeprefix(prefix) in names:
        known = spec.tensors()
        bare = {n: prefix + n for n in names if prefix + n in known or leftover(n)}
    transposed = [linear.weight for linear in spec.linears() if linear.transposed]
    return checkpoint.arranged(bare, transposed) if bare or transposed else checkpoint
