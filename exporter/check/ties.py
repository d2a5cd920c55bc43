"""Rule: a head that the config ties to the embedding, yet is stored, equals it."""

from __future__ import annotations

from exporter.arch.model_spec import ModelSpec
from exporter.check.blocks import row_ranges
from exporter.errors import InputRefused
from exporter.store.checkpoint import Checkpoint


def check_tie(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Compare a stored tied head with the embedding, value by value, whatever their types.

    Raises:
        InputRefused: `tie-conflict` with the first row that differs.
    """
    head = checkpoint.entries.get(spec.head)
    if not spec.tied or head is None:
        return
    embedding = checkpoint.entries[spec.embedding]
    found = None
    if head.shape != embedding.shape:
        found = f"shape {list(head.shape)}, the embedding {list(embedding.shape)}"
    else:
        for r0, r1 in row_ranges(head):
            stored = checkpoint.rows(spec.head, r0, r1)
            equal = (stored == checkpoint.rows(spec.embedding, r0, r1)).all(axis=1)
            if not equal.all():
                found = f"row {r0 + int(equal.argmin())} differs from the embedding's"
                break
    if found:
        raise InputRefused(
            "tie-conflict",
            found,
            expected=f"the values of {spec.embedding}, since tie_word_embeddings is true",
            file=head.file,
            tensor=spec.head,
        )
