"""Model folders that must be refused: shards, index, links, special files, other formats."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.errors import InputRefused
from exporter.limits import LIMITS
from exporter.store.checkpoint import Checkpoint
from tests.attacks.corpus import LFS, edit_index, write_index, write_model

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def sharded(root: Path) -> Path:
    a = np.arange(8, dtype=np.float32)
    return write_model(root, {ONE: {"a": a}, TWO: {"b": a + 1, "c": a[:3]}})


def truncate(path: Path, keep: float) -> None:
    os.truncate(path, int(path.stat().st_size * keep))


def remap(key: str, value: Any) -> Callable[[Path], None]:
    return lambda r: edit_index(r, lambda i: i["weight_map"].update({key: value}))


def total(value: Any) -> Callable[[Path], None]:
    return lambda r: edit_index(r, lambda i: i["metadata"].update(total_size=value))


def duplicate_tensor(r: Path) -> None:
    a = np.arange(8, dtype=np.float32)
    write_model(r, {ONE: {"a": a, "b": a}, TWO: {"b": a, "c": a}})


def extra_in_shard(r: Path) -> None:
    edit_index(r, lambda i: i["weight_map"].pop("c"))


def bind_socket(r: Path) -> None:
    (r / "model.safetensors").unlink()
    here = os.getcwd()
    os.chdir(r)  # a socket's path may hold no more than 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("model.safetensors")
    finally:
        os.chdir(here)


def named(name: str, data: bytes = b"x") -> Callable[[Path], None]:
    return lambda r: (r / name).write_bytes(data) and None


SHARDED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "last shard short by a byte": (
        lambda r: os.truncate(r / TWO, (r / TWO).stat().st_size - 1),
        "file-truncated",
    ),
    "last shard cut to half": (lambda r: truncate(r / TWO, 0.5), "file-truncated"),
    "last shard empty": (lambda r: truncate(r / TWO, 0), "file-truncated"),
    "zeros past the end": (
        lambda r: os.truncate(r / TWO, (r / TWO).stat().st_size + 4096),
        "header-range",
    ),
    "shard missing": (lambda r: (r / TWO).unlink(), "shard-missing"),
    "stale shard": (
        lambda r: shutil.copy(r / ONE, r / "model-00003-of-00003.safetensors"),
        "shard-stale",
    ),
    "consolidated beside shards": (
        lambda r: shutil.copy(r / ONE, r / "consolidated.00.safetensors"),
        "ambiguous-weights",
    ),
    "single file beside shards": (
        lambda r: shutil.copy(r / ONE, r / "model.safetensors"),
        "ambiguous-weights",
    ),
    "index lacks a tensor": (extra_in_shard, "index-mismatch"),
    "shard lacks a tensor": (remap("d", TWO), "index-mismatch"),
    "index swaps shards": (
        lambda r: write_index(r, {"a": TWO, "b": ONE, "c": TWO}, 76),
        "index-mismatch",
    ),
    "no tensor left for a shard": (remap("a", TWO), "shard-stale"),
    "tensor in two shards": (duplicate_tensor, "tensor-duplicate"),
    "total_size wrong": (total(1), "index-mismatch"),
    "total_size negative": (total(-76), "index-mismatch"),
    "total_size is text": (total("76"), "index-invalid"),
    "total_size is true": (total(True), "index-invalid"),
    "shard name climbs": (remap("a", "../evil.safetensors"), "escape"),
    "shard name absolute": (remap("a", "/etc/passwd"), "escape"),
    "shard name with backslash": (remap("a", "..\\evil.safetensors"), "escape"),
    "shard in a folder": (remap("a", "sub/x.safetensors"), "escape"),
    "shard name dot dot": (remap("a", ".."), "escape"),
    "shard name with NUL": (remap("a", "x\0.safetensors"), "index-invalid"),
    "shard name other type": (remap("a", "x.bin"), "index-invalid"),
    "shard name too long": (remap("a", "é" * 130 + ".safetensors"), "index-invalid"),
    "shard name is a number": (remap("a", 7), "index-invalid"),
    "tensor name empty": (remap("", ONE), "header-invalid"),
    "index empty": (lambda r: write_index(r, {}, 0), "index-invalid"),
    "index weight_map list": (lambda r: write_index(r, [], 0), "index-invalid"),
    "index metadata list": (
        lambda r: edit_index(r, lambda i: i.update(metadata=[])),
        "index-invalid",
    ),
    "index is a list": (lambda r: (r / INDEX).write_text("[]"), "index-invalid"),
    "index not JSON": (lambda r: (r / INDEX).write_text("{"), "json-invalid"),
    "index is an lfs pointer": (lambda r: (r / INDEX).write_bytes(LFS), "lfs-pointer"),
    "index missing": (lambda r: (r / INDEX).unlink(), "input-missing"),
    "unfinished shard": (named(TWO + ".incomplete"), "incomplete-download"),
}

SINGLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "config absent": (lambda r: (r / "config.json").unlink(), "input-missing"),
    "config list": (lambda r: (r / "config.json").write_text("[]"), "config-invalid"),
    "config number": (lambda r: (r / "config.json").write_text("3"), "config-invalid"),
    "config null": (lambda r: (r / "config.json").write_text("null"), "config-invalid"),
    "config a folder": (
        lambda r: ((r / "config.json").unlink(), (r / "config.json").mkdir()),
        "input-kind",
    ),
    "weights a folder": (
        lambda r: ((r / "model.safetensors").unlink(), (r / "model.safetensors").mkdir()),
        "input-kind",
    ),
    "weights a pipe": (
        lambda r: ((r / "model.safetensors").unlink(), os.mkfifo(r / "model.safetensors")),
        "input-kind",
    ),
    "weights a socket": (bind_socket, "input-kind"),
    "config a pipe": (
        lambda r: ((r / "config.json").unlink(), os.mkfifo(r / "config.json")),
        "input-kind",
    ),
    "tokenizer a pipe": (lambda r: os.mkfifo(r / "tokenizer.json"), "input-kind"),
    "weights an lfs pointer": (named("model.safetensors", LFS), "lfs-pointer"),
    "tokenizer an lfs pointer": (named("tokenizer.json", LFS), "lfs-pointer"),
    "pickle only": (
        lambda r: (r / "model.safetensors").rename(r / "pytorch_model.bin"),
        "pickle-refused",
    ),
    "no weights": (lambda r: (r / "model.safetensors").unlink(), "input-missing"),
    "weights under another name": (
        lambda r: (r / "model.safetensors").rename(r / "consolidated.safetensors"),
        "input-missing",
    ),
    "two single files": (
        lambda r: shutil.copy(r / "model.safetensors", r / "model.fp16.safetensors"),
        "ambiguous-weights",
    ),
    "an adapter beside the model": (
        lambda r: shutil.copy(r / "model.safetensors", r / "adapter_model.safetensors"),
        "ambiguous-weights",
    ),
    "unfinished in the local cache": (
        lambda r: (
            (r / "model.safetensors").unlink(),
            (r / ".cache/huggingface/download").mkdir(parents=True),
            (r / ".cache/huggingface/download/abc.incomplete").touch(),
        ),
        "incomplete-download",
    ),
    "generation config a list": (named("generation_config.json", b"[]"), "json-invalid"),
    "generation config broken": (named("generation_config.json", b"{,}"), "json-invalid"),
    "tokenizer config with NaN": (named("tokenizer_config.json", b'{"a": NaN}'), "json-invalid"),
    "link out of the folder": (lambda r: link_out(r, "model.safetensors"), "escape"),
    "config link out": (lambda r: link_out(r, "config.json"), "escape"),
    "tokenizer link to a device": (
        lambda r: (r / "tokenizer.json").symlink_to("/dev/zero"),
        "escape",
    ),
    "link in a circle": (
        lambda r: (r / "merges.txt").symlink_to(r / "merges.txt"),
        "input-unreadable",
    ),
    "dangling link": (lambda r: (r / "merges.txt").symlink_to(r / "nowhere"), "input-missing"),
}


def link_out(r: Path, name: str) -> None:
    (r / name).rename(r.parent / "outside")
    (r / name).symlink_to("../outside")


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_folder_is_refused(name: str, tmp_path: Path) -> None:
    attack, code = SHARDED[name]
    root = sharded(tmp_path / "model")
    Checkpoint.open(root)
    attack(root)
    with pytest.raises(InputRefused) as caught:
        Checkpoint.open(root)
    assert caught.value.code == code and caught.value.file


@pytest.mark.parametrize("name", SINGLE)
def test_single_folder_is_refused(name: str, tmp_path: Path) -> None:
    attack, code = SINGLE[name]
    root = write_model(tmp_path / "model")
    Checkpoint.open(root)
    attack(root)
    with pytest.raises(InputRefused) as caught:
        Checkpoint.open(root)
    assert caught.value.code == code and caught.value.file


def test_root_itself(tmp_path: Path) -> None:
    for path, code in (
        (tmp_path / "none", "input-missing"),
        (Path("a\0b"), "input-missing"),
        (write_model(tmp_path / "m") / "config.json", "input-kind"),
    ):
        with pytest.raises(InputRefused) as caught:
            Checkpoint.open(path)
        assert caught.value.code == code


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a failing open(2): root, as whom tests may run, may read every file."""
    root = write_model(tmp_path / "m")
    real = os.open

    def refuse(path: Any, *rest: Any) -> int:
        if Path(path).name == "model.safetensors":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputRefused) as caught:
        Checkpoint.open(root)
    assert (caught.value.code, caught.value.file) == ("input-unreadable", "model.safetensors")


def test_no_tensor_at_all(tmp_path: Path) -> None:
    root = write_model(tmp_path / "m")
    (root / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputRefused) as caught:
        Checkpoint.open(root)
    assert caught.value.code == "tensor-missing"


@pytest.mark.parametrize(("field", "value"), [("shards", 1), ("tensors", 2), ("json_bytes", 10)])
def test_limits_of_a_folder(field: str, value: int, tmp_path: Path) -> None:
    root = sharded(tmp_path / "m")
    with pytest.raises(InputRefused) as caught:
        Checkpoint.open(root, dataclasses.replace(LIMITS, **{field: value}))
    assert caught.value.code == "limit-exceeded"


def test_limit_of_a_sidecar(tmp_path: Path) -> None:
    root = write_model(tmp_path / "m")
    (root / "tokenizer.json").write_text("{}" + " " * 100)
    with pytest.raises(InputRefused) as caught:
        Checkpoint.open(root, dataclasses.replace(LIMITS, sidecar_bytes=100))
    assert (caught.value.code, caught.value.file) == ("limit-exceeded", "tokenizer.json")


def hub_cache(repo: Path) -> Path:
    """The layout of the Hugging Face cache: links from the snapshot into the blobs."""
    snapshot = repo / "snapshots" / "0123abc"
    write_model(snapshot)
    (repo / "blobs").mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(repo / "blobs" / f"hash-{path.name}")
        path.symlink_to(f"../../blobs/hash-{path.name}")
    return snapshot


def test_hub_cache_is_read(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path / "models--x--y")
    with_links = Checkpoint.open(snapshot)
    assert with_links.rows("a").tolist() == list(range(8))
    link = tmp_path / "link"
    link.symlink_to(snapshot)  # the user's own link to the folder is fine as well
    assert Checkpoint.open(link).identity() == with_links.identity()


def test_hub_cache_does_not_reach_another_repository(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path / "models--x--y")
    other = hub_cache(tmp_path / "models--other")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to((other / "config.json").resolve())
    with pytest.raises(InputRefused) as caught:
        Checkpoint.open(snapshot)
    assert caught.value.code == "escape"


def test_hub_cache_with_an_unfinished_blob(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path / "models--x--y")
    (snapshot / "model.safetensors").unlink()
    (snapshot.parent.parent / "blobs" / "hash.incomplete").touch()
    with pytest.raises(InputRefused) as caught:
        Checkpoint.open(snapshot)
    assert caught.value.code == "incomplete-download"


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    root = write_model(tmp_path / "m")
    (root / "real").mkdir()
    (root / "model.safetensors").rename(root / "real" / "w")
    (root / "model.safetensors").symlink_to("real/w")
    assert Checkpoint.open(root).rows("a").tolist() == list(range(8))


def test_what_lies_beside_is_ignored_and_told(tmp_path: Path) -> None:
    root = sharded(tmp_path / "m")
    for name in ("pytorch_model.bin", "modeling_evil.py", "README.md", "masks.safetensors"):
        (root / name).write_text("x")
    (root / "additional_chat_templates").mkdir()
    (root / "tokenizer.json").write_text("{}")
    checkpoint = Checkpoint.open(root)
    assert [s.name for s in checkpoint.sidecars] == ["tokenizer.json"]
    assert set(checkpoint.ignored) == {
        "README.md", "additional_chat_templates", "masks.safetensors", "modeling_evil.py",
        "pytorch_model.bin",
    }  # fmt: skip


def test_an_index_of_one_plain_file(tmp_path: Path) -> None:
    root = write_model(tmp_path / "m")
    write_index(root, {"a": "model.safetensors"}, 32.0)  # some writers put a float
    assert list(Checkpoint.open(root).entries) == ["a"]
    size = (root / "model.safetensors").stat().st_size
    write_index(root, {"a": "model.safetensors"}, size)  # or the size of the files
    assert list(Checkpoint.open(root).entries) == ["a"]
    (root / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert list(Checkpoint.open(root).entries) == ["a"]
