"""Perplexity of a folder: a Hugging Face model, one with adapters, or an exported artefact."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.contract import Progress
from harness.documents import FIELD, digest, documents, joined_ids
from harness.evaluate.artefact import is_artefact, opened, require_bare
from harness.evaluate.artefact import scorer as artefact_scorer
from harness.evaluate.perplexity import Score, Scorer, perplexity
from harness.evaluate.protocol import Protocol
from harness.hf import load_tokenizer


@dataclass(frozen=True)
class Evaluation:
    """A score, and everything needed to repeat it."""

    score: Score
    protocol: Protocol
    data: str
    data_sha256: str
    engine: str

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1,
            "perplexity": self.score.perplexity,
            **asdict(self.score),
            "length": self.protocol.length,
            "stride": self.protocol.step,
            "most_tokens": self.protocol.tokens,
            "data": Path(self.data).name,
            "data_sha256": self.data_sha256,
            "engine": self.engine,
        }

    def told(self) -> str:
        """For people."""
        return (
            f"perplexity {self.score.perplexity:.4f}  ({self.score.tokens} tokens scored, "
            f"{self.score.windows} windows of {self.protocol.length}, "
            f"stride {self.protocol.step}, {self.engine})"
        )


def evaluate_folder(
    folder: Path,
    data: str,
    protocol: Protocol,
    *,
    field: str = FIELD,
    adapters: Sequence[Path] = (),
    masks: Path | None = None,
    tokenizer: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Perplexity of `folder` on the text `data`.

    Args:
        folder: a Hugging Face folder (float32 on the CPU, transformers), or an artefact that
            `sparse-export` published (its own engine).
        data: a UTF-8 text file, or "builtin", tokenised in one piece, no special tokens; or JSON
            lines or a cached dataset of the hub, the end token behind each text.
        field: of a JSON line or a dataset's row: its text.
        protocol: which tokens count.
        adapters: added to a Hugging Face folder; nothing of them is dropped.
        masks: masks file of a Hugging Face folder; else its zeros are the mask.
        tokenizer: folder of the tokenizer, where it is not `folder`.
        progress: told after each window.

    Raises:
        InputRefused: what the model's, text's and adapter's readers refuse.
        UsageError: `usage` for windows longer than the model reads, or adapters on an artefact.
        EngineUnfit: what opening an artefact can raise.
        VerificationFailed: `values-not-finite`.
    """
    require_bare(folder, adapters, masks)
    texts = documents(data, field)
    ids = joined_ids(load_tokenizer(tokenizer or folder), texts)
    with _scorer(folder, adapters, masks, progress) as (score, longest, engine):
        found = perplexity(score, ids, protocol.checked(longest), progress)
    return Evaluation(found, protocol, data, digest(texts), engine)


@contextmanager
def _scorer(
    folder: Path, adapters: Sequence[Path], masks: Path | None, progress: Progress | None
) -> Generator[tuple[Scorer, int, str]]:
    if is_artefact(folder):
        with opened(folder) as session:
            yield artefact_scorer(session), session.max_tokens, session.facts().engine
        return
    # Imported here: an artefact needs neither torch nor transformers.
    from harness.evaluate.loading import load
    from harness.evaluate.torch_model import scorer

    model, longest = load(folder, adapters, masks, progress)
    yield scorer(model), longest, "torch float32"
