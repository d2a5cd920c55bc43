"""What lies in a model folder: which files are its weights, which travel along, which are ignored.

One set of weights, or a refusal: a loader that globs picks up a stale shard in silence.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from exporter.errors import InputRefused
from exporter.limits import LIMITS, Limits
from exporter.store.index import INDEX, Index, read_index
from exporter.store.jsonio import read_json
from exporter.store.plainfile import real_path, stamp_file, unreadable

SINGLE = "model.safetensors"
CONFIG = "config.json"
SIDECARS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
TEMPLATES = "additional_chat_templates"  # a folder of named templates, transformers >= 4.53
# Small ones whose form is checked here; tokenizer.json is parsed where its tokens are needed.
_JSON_OBJECTS = ("generation_config.json", "special_tokens_map.json", "tokenizer_config.json")
_COMPANIONS = ("masks.safetensors",)  # ours: which weights are kept
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_UNFINISHED = (".incomplete", ".part", ".aria2", ".crdownload")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


@dataclass(frozen=True)
class Listing:
    """The files of a folder, sorted into what they are for."""

    weights: tuple[str, ...]  # plain names, sorted
    index: Index | None
    sidecars: tuple[str, ...]  # "NAME", or "additional_chat_templates/NAME.jinja"
    ignored: tuple[str, ...]  # anything else at the top level


def list_folder(root: Path, limits: Limits = LIMITS) -> Listing:
    """Sort the files of `root`; reads the shard index, no weights.

    Raises:
        InputRefused: `input-missing`, `input-kind`, `incomplete-download`, `pickle-refused`,
            `ambiguous-weights`, `shard-missing`, `shard-stale`, those of `read_index`.
    """
    names = _names(root)
    unfinished = [n for n in names if n.endswith(_UNFINISHED)]
    if unfinished:
        raise InputRefused("incomplete-download", "an unfinished download", file=unfinished[0])
    stored = [n for n in names if n.endswith(".safetensors") and n not in _COMPANIONS]
    index = None
    if INDEX in names:
        stamp_file(root / INDEX, root)
        index = read_index(root / INDEX, limits)
        weights = index.shards
    else:
        weights = (SINGLE,)
    _require(root, names, stored, weights, index)
    _refuse_others(stored, weights, index)
    sidecars = (*(n for n in SIDECARS if n in names), *_templates(root, names))
    used = {*weights, *(n.partition("/")[0] for n in sidecars), INDEX, CONFIG}
    return Listing(weights, index, sidecars, tuple(n for n in names if n not in used))


def read_config(root: Path, limits: Limits = LIMITS) -> dict[str, Any]:
    """config.json as parsed; nothing in it is run or imported.

    Raises:
        InputRefused: `config-invalid` for anything but an object, those of `read_json`.
    """
    stamp_file(root / CONFIG, root)
    value = read_json(root / CONFIG, limits)
    if not isinstance(value, dict):
        found = f"{type(value).__name__} at the top"
        raise InputRefused("config-invalid", found, expected="an object", file=CONFIG)
    return cast("dict[str, Any]", value)


def check_sidecar(path: Path, limits: Limits = LIMITS) -> None:
    """The small JSON sidecars are objects; the others are bytes to us.

    Raises:
        InputRefused: `json-invalid`, `limit-exceeded`.
    """
    if path.name in _JSON_OBJECTS and not isinstance(read_json(path, limits), dict):
        raise InputRefused("json-invalid", "not an object", file=path.name)


def _names(root: Path) -> list[str]:
    try:
        if real_path(root).exists() and not root.is_dir():
            raise InputRefused("input-kind", "a file", expected="a model folder", file=root.name)
        return sorted(p.name for p in root.iterdir())
    except OSError as error:
        raise unreadable(error, str(root)) from error


def _templates(root: Path, names: list[str]) -> Iterator[str]:
    """The templates of tokenizers that have several, below their folder."""
    if TEMPLATES in names and (root / TEMPLATES).is_dir():
        for name in _names(root / TEMPLATES):
            # The manifest names every file, in printable characters.
            if name.endswith(".jinja") and name.isprintable() and "\\" not in name:
                yield f"{TEMPLATES}/{name}"


def _require(
    root: Path, names: list[str], stored: list[str], weights: tuple[str, ...], index: Index | None
) -> None:
    """All weight files are there; otherwise the most likely reason is told."""
    missing = next((w for w in weights if w not in names), None)
    if missing is None:
        return
    unfinished = _unfinished_in_cache(root)
    if unfinished:
        found = f"{missing} is missing, and {unfinished} is unfinished"
        raise InputRefused("incomplete-download", found, file=missing)
    if index is not None:
        raise InputRefused("shard-missing", "not in the folder", file=missing)
    if stored:
        shards = all(_SHARD.fullmatch(n) for n in stored)
        raise InputRefused(
            "input-missing",
            f"{stored[0]} is here, but no {INDEX if shards else SINGLE}",
            expected=f"{SINGLE}, or shards with {INDEX}",
            file=INDEX if shards else SINGLE,
        )
    pickled = [n for n in names if n.endswith(_PICKLES)]
    if pickled:
        raise InputRefused("pickle-refused", "weights only in pickle files", file=pickled[0])
    raise InputRefused(
        "input-missing", "no weights in the folder", expected=f"{SINGLE} or {INDEX}", file=SINGLE
    )


def _refuse_others(stored: list[str], weights: tuple[str, ...], index: Index | None) -> None:
    others = [n for n in stored if n not in weights]
    if not others:
        return
    first = others[0]
    if index is not None and _SHARD.fullmatch(first):
        found, expected = f"{INDEX} does not name it", "no shard but those of the index"
        raise InputRefused("shard-stale", found, expected=expected, file=first)
    raise InputRefused("ambiguous-weights", f"beside {weights[0]}", file=first)


def _unfinished_in_cache(root: Path) -> str | None:
    """An unfinished file where huggingface_hub keeps its own; old ones may linger there."""
    for folder in (root / ".cache/huggingface/download", root.parent.parent / "blobs"):
        if folder.name == "blobs" and root.parent.name != "snapshots":
            continue
        with contextlib.suppress(OSError):  # a cache that is not there, or not ours to read
            for path in sorted(folder.iterdir()):
                if path.name.endswith(_UNFINISHED):
                    return path.name
    return None
