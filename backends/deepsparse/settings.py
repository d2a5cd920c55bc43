"""Sequence length, prompt chunk and cache: what DeepSparse 1.8.0 computes rightly, and defaults.

The rules were measured on the engine, against onnxruntime, on random decoders
(docs/reference/deepsparse.md has the table). Outside them it crashes or, worse, answers
wrongly without a word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from exporter.arch.spec import DecoderSpec
from exporter.errors import EngineUnfit, UsageError

Cache = Literal["auto", "internal", "external"]

SETTINGS_FILE = "deepsparse.json"
GRANULE = 64  # of the sequence length; also the head size up to which any size works
DEFAULT_LENGTH = 1024  # the pipeline's own
FAST_CHUNK = 64  # the shortest at which the sparse kernels beat the dense ones on AVX2
SMALL_CHUNK = 16


@dataclass(frozen=True)
class Settings:
    """How the engine is set up, by the names of `deepsparse.TextGeneration`'s arguments."""

    sequence_length: int
    prompt_sequence_length: int
    internal_kv_cache: bool

    @property
    def max_tokens(self) -> int:
        """Longest prompt and answer together: the last place of the engine's cache is unusable."""
        return self.sequence_length - int(self.internal_kv_cache)

    @property
    def cache(self) -> Literal["internal", "external"]:
        """Where keys and values live."""
        return "internal" if self.internal_kv_cache else "external"

    def as_json(self) -> bytes:
        """Text of `deepsparse.json`: keyword arguments for `deepsparse.TextGeneration`."""
        return (json.dumps(self.__dict__, indent=1) + "\n").encode()


def internal_cache_fits(head_dim: int) -> bool:
    """Whether the engine's own cache keeps heads of this size rightly."""
    return head_dim <= GRANULE or head_dim % GRANULE == 0


def chunk_fits(chunk: int, length: int, internal: bool) -> bool:
    """Whether prompts may be fed in chunks of this many tokens."""
    if chunk == 1:
        return True
    if chunk % 4 or not 0 < chunk < length:
        return False
    if not internal:
        return True
    return 2 * chunk < length and (chunk <= GRANULE or chunk % GRANULE == 0)


def longest(spec: DecoderSpec) -> int:
    """Longest sequence length for this model, 0 where it is too short for one granule."""
    return spec.full_context // GRANULE * GRANULE


def resolve(
    spec: DecoderSpec, sequence_length: int | None, prefill_chunk: int | None, cache: Cache
) -> Settings:
    """Settings for a model, from the target's options.

    Raises:
        UsageError: `target-option` for what the engine would get wrong.
    """
    length = sequence_length
    if length is None:
        length = max(GRANULE, min(DEFAULT_LENGTH, longest(spec)))
    if length % GRANULE or not GRANULE <= length <= max(GRANULE, longest(spec)):
        raise _option(f"sequence_length={length}", f"a multiple of {GRANULE} up to {longest(spec)}")
    fits = internal_cache_fits(spec.head_dim)
    if cache == "internal" and not fits:
        raise _option(
            f"cache=internal with heads of {spec.head_dim}",
            f"head size up to {GRANULE} or a multiple of it; DeepSparse answers wrongly otherwise",
        )
    internal = fits if cache == "auto" else cache == "internal"
    chunk = _default_chunk(length) if prefill_chunk is None else prefill_chunk
    if not chunk_fits(chunk, length, internal):
        want = "1, or a multiple of 4 below half the sequence length, above 64 a multiple of 64"
        raise _option(f"prefill_chunk={chunk} with sequence_length={length}", want)
    return Settings(length, chunk, internal)


def read_settings(folder: Path) -> Settings:
    """Settings that an artefact was made for.

    Raises:
        EngineUnfit: `engine-refused` where the file is missing or malformed.
    """
    try:
        text = (folder / SETTINGS_FILE).read_bytes()
        settings = _checked(json.loads(text[:4096]))
    except (OSError, ValueError, TypeError, RecursionError):
        raise EngineUnfit(
            "engine-refused",
            "it is missing or malformed",
            expected="what `sparse-export --target deepsparse` wrote",
            file=SETTINGS_FILE,
        ) from None
    return settings


def _checked(raw: Any) -> Settings:
    settings = Settings(**raw)
    length, chunk = settings.sequence_length, settings.prompt_sequence_length
    internal = settings.internal_kv_cache
    typed = type(length) is int and type(chunk) is int and type(internal) is bool
    if not typed or length % GRANULE or length <= 0 or not chunk_fits(chunk, length, internal):
        raise ValueError
    return settings


def _default_chunk(length: int) -> int:
    return FAST_CHUNK if length > 2 * FAST_CHUNK else SMALL_CHUNK


def _option(found: str, expected: str) -> UsageError:
    return UsageError("target-option", f"deepsparse: {found}", expected=expected)
