"""Tokenizer files in the form that DeepSparse's transformers (4.39, tokenizers 0.15) reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from exporter.store.jsonio import read_json

# Classes of transformers 4.39 that read a tokenizer.json; any newer name is an error there.
_KNOWN = frozenset(
    {
        "CodeLlamaTokenizer",
        "CodeLlamaTokenizerFast",
        "GPT2Tokenizer",
        "GPT2TokenizerFast",
        "LlamaTokenizer",
        "LlamaTokenizerFast",
        "PreTrainedTokenizerFast",
        "Qwen2Tokenizer",
        "Qwen2TokenizerFast",
    }
)


def rewrites() -> Mapping[str, Callable[[Path], bytes | None]]:
    """By file name: what gives the new bytes, or None where the file can stay as it is."""
    return {"tokenizer.json": _tokenizer, "tokenizer_config.json": _config}


def complaints(path: Path) -> list[str]:
    """What the old library would silently read otherwise than the new one, from tokenizer.json."""
    model = _model(read_json(path))
    found: list[str] = []
    if model.get("ignore_merges"):
        found.append("it sets ignore_merges, which DeepSparse's tokenizers 0.15 does not know")
    if _spaced(model.get("merges")):
        found.append("it merges tokens with spaces, which tokenizers 0.15 cannot read")
    return found


def _tokenizer(path: Path) -> bytes | None:
    """Merges as "a b", not as pairs; None where they are already, or cannot be."""
    raw = read_json(path)
    model = _model(raw)
    merges = model.get("merges")
    if not isinstance(merges, list) or not merges or _spaced(merges):
        return None
    pairs = cast(list[Any], merges)
    if not all(isinstance(pair, list) for pair in pairs):
        return None
    model["merges"] = [" ".join(cast(list[str], pair)) for pair in pairs]
    return _text(raw)


def _config(path: Path) -> bytes | None:
    """A class that transformers 4.39 has; the vocabulary is in tokenizer.json all the same."""
    raw = read_json(path)
    fast = path.with_name("tokenizer.json").is_file()
    if not isinstance(raw, dict) or not fast or raw.get("tokenizer_class") in _KNOWN:
        return None
    raw["tokenizer_class"] = "PreTrainedTokenizerFast"
    return _text(cast(dict[str, Any], raw))


def _model(raw: Any) -> dict[str, Any]:
    model = cast(dict[str, Any], raw).get("model") if isinstance(raw, dict) else None
    return cast(dict[str, Any], model) if isinstance(model, dict) else {}


def _spaced(merges: Any) -> bool:
    if not isinstance(merges, list):
        return False
    pairs = (pair for pair in cast(list[Any], merges) if isinstance(pair, list))
    return any(" " in str(part) for pair in pairs for part in cast(list[Any], pair))


def _text(raw: Any) -> bytes:
    return (json.dumps(raw, indent=2, ensure_ascii=False) + "\n").encode()
