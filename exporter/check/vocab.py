"""Rule: config, embedding, head and tokenizer agree about the vocabulary.

The embedding may have more rows than the tokenizer has tokens (padding), never fewer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.store.checkpoint import Checkpoint
from exporter.store.jsonio import read_json

TOKENIZER = "tokenizer.json"
_LISTS = ("added_tokens.json", "vocab.json")  # older layouts: token -> id and nothing else


def check_vocab(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Rows of embedding and head equal the config's vocabulary; every token id has its row.

    Raises:
        InputRefused: `vocab-mismatch`, `json-invalid` for a tokenizer file of another form.
    """
    for name in (spec.embedding, spec.head):
        entry = checkpoint.entries.get(name)
        if entry is not None and len(entry.shape) == 2 and entry.shape[0] != spec.vocab:
            raise InputRefused(
                "vocab-mismatch",
                f"{entry.shape[0]} rows",
                expected=f"vocab_size of config.json, {spec.vocab}",
                file=entry.file,
                tensor=name,
            )
    for sidecar in checkpoint.sidecars:
        if sidecar.name == TOKENIZER:
            _check_rows(_token_ids(read_json(sidecar.path)), spec, sidecar.name)
        elif sidecar.name in _LISTS:
            tokens = _mapping(read_json(sidecar.path), sidecar.name)
            ids = ((_id(number, sidecar.name), token) for token, number in tokens.items())
            _check_rows(ids, spec, sidecar.name)


def _check_rows(tokens: Iterable[tuple[int, str]], spec: ModelSpec, file: str) -> None:
    number, token = max(tokens, default=(-1, ""))
    if number >= spec.vocab:
        raise InputRefused(
            "vocab-mismatch",
            f"token {token!r:.40} has id {number}",
            expected=f"ids below the embedding's {spec.vocab} rows",
            file=file,
            tensor=spec.embedding,
        )


def _token_ids(tokenizer: Any) -> Iterable[tuple[int, str]]:
    """Ids and tokens of model and added tokens (format of the tokenizers library)."""
    vocab = _mapping(_mapping(tokenizer).get("model")).get("vocab")
    if isinstance(vocab, Mapping):  # BPE, WordPiece, WordLevel
        for token, number in cast(Mapping[str, Any], vocab).items():
            yield _id(number), token
    elif isinstance(vocab, list):  # Unigram: [token, score], the place is the id
        for number, pair in enumerate(cast(list[Any], vocab)):
            yield number, str(pair)
    else:
        raise _malformed("model.vocab is neither an object nor a list")
    for added in cast(list[Any], _mapping(tokenizer).get("added_tokens") or []):
        token = _mapping(added)
        yield _id(token.get("id")), str(token.get("content"))


def _mapping(value: Any, file: str = TOKENIZER) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _malformed(f"{value!r:.40} stands where an object should", file)
    return cast(Mapping[str, Any], value)


def _id(value: Any, file: str = TOKENIZER) -> int:
    if type(value) is not int or value < 0:
        raise _malformed(f"token id {value!r:.40}", file)
    return value


def _malformed(found: str, file: str = TOKENIZER) -> InputRefused:
    form = "the tokenizers library" if file == TOKENIZER else "transformers: token to id"
    return InputRefused("json-invalid", found, expected=f"the form of {form}", file=file)
