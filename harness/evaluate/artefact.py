"""Scoring by an exported artefact: the engine that serves it is the one that is scored."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from exporter.contract import Session, Tokens
from exporter.errors import UsageError
from exporter.registry import load_target
from exporter.store.manifest import MANIFEST, read_manifest
from harness.evaluate.perplexity import F64, Scorer, nats_of


def is_artefact(folder: Path) -> bool:
    """Whether `sparse-export` published this folder."""
    return (folder / MANIFEST).is_file()


def require_bare(folder: Path, adapters: Sequence[Path], masks: Path | None) -> None:
    """Refuse adapters or masks beside an artefact, which has its own inside.

    Raises:
        UsageError: `usage`.
    """
    if (adapters or masks) and is_artefact(folder):
        raise UsageError(
            "usage", "adapters or masks for an exported artefact", expected="a Hugging Face folder"
        )


@contextmanager
def opened(folder: Path) -> Generator[Session]:
    """The artefact in its engine.

    Raises:
        InputRefused: `manifest-invalid`.
        UsageError: `unknown-target`, `target-option`.
        EngineUnfit: see `Target.open`.
    """
    entry = read_manifest(folder).target
    session = load_target(entry.name, dict(entry.options)).open(folder)
    try:
        yield session
    finally:
        session.close()


def scorer(session: Session) -> Scorer:
    """Score by the logits of `Session.prefill`, float32, in float64."""

    def score(ids: Tokens) -> F64:
        return nats_of(session.prefill(ids.tolist(), logits="all"), ids)

    return score
