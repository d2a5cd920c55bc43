"""What travels beside the weights: a config without paths of this machine, tokenizer files."""

from __future__ import annotations

import json
import ntpath
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.contract import PlannedFile
from exporter.model import FusedModel
from exporter.store.writer import RawWriter

_COPY_BYTES = 1 << 20


def clean_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without `_name_or_path` and without any other value that is an absolute path."""
    return {
        key: clean_config(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key != "_name_or_path" and not _is_path(value)
    }


def _is_path(value: object) -> bool:
    return isinstance(value, str) and (posixpath.isabs(value) or ntpath.isabs(value))


def config_bytes(
    model: FusedModel, dtype: str | None = None, more: Mapping[str, Any] | None = None
) -> bytes:
    """The config.json of the artefact; `dtype`, if given, is the type it names.

    `more` are keys of the target's own, such as `quantization_config`; they come last.
    """
    cleaned = clean_config(model.checked.checkpoint.config)
    cleaned["tie_word_embeddings"] = model.tied
    if dtype is not None:
        # torch_dtype is what transformers before 4.56 reads.
        named = [key for key in ("dtype", "torch_dtype") if key in cleaned]
        cleaned |= dict.fromkeys(named or ["dtype"], dtype)
    cleaned |= more or {}
    return (json.dumps(cleaned, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_companions(
    model: FusedModel,
    folder: Path,
    dtype: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json (see `config_bytes`) and the sidecars, byte for byte, into `folder`."""
    write_file(folder / "config.json", config_bytes(model, dtype, more))
    for sidecar in model.checked.checkpoint.sidecars:
        (folder / sidecar.name).parent.mkdir(exist_ok=True)
        with RawWriter(folder / sidecar.name) as writer, sidecar.path.open("rb") as source:
            while block := source.read(_COPY_BYTES):
                writer.write(block)
            writer.close()


def plan_companions(
    model: FusedModel, dtype: str | None = None, more: Mapping[str, Any] | None = None
) -> tuple[PlannedFile, ...]:
    """The same files with their sizes."""
    files = [PlannedFile("config.json", len(config_bytes(model, dtype, more)))]
    files += [PlannedFile(s.name, s.path.stat().st_size) for s in model.checked.checkpoint.sidecars]
    return tuple(files)


def write_file(path: Path, data: bytes) -> None:
    """A new file, synced."""
    with RawWriter(path) as writer:
        writer.write(data)
        writer.close()
