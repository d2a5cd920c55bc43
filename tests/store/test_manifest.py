"""The manifest: round trip, what it must not say, and every difference between it and a folder."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.errors import InputRefused, VerificationFailed
from exporter.store.checkpoint import Checkpoint
from exporter.store.manifest import (
    MANIFEST,
    Manifest,
    TargetEntry,
    check_files,
    describe_files,
    describe_model,
    describe_outputs,
    library_versions,
    read_manifest,
    write_manifest,
)
from exporter.store.writer import write_safetensors
from tests.attacks.corpus import write_model


def artefact(base: Path) -> tuple[Path, Manifest]:
    """A folder with two files and its manifest, made from a model and an adapter below `base`."""
    model = write_model(base / "model")
    adapter = base / "adapter"
    adapter.mkdir()
    write_safetensors(adapter / "adapter_model.safetensors", {"lora_A": np.ones(4, np.float32)})
    (adapter / "adapter_config.json").write_text("{}")
    out = base / "out"
    (out / "sub").mkdir(parents=True)
    (out / "model.onnx").write_bytes(b"graph")
    (out / "sub" / "model.data").write_bytes(b"weights")
    names = ["adapter_model.safetensors", "adapter_config.json"]
    manifest = Manifest(
        tool="0.1.0",
        libraries=library_versions(["pydantic", "no-such-package"]),
        target=TargetEntry(name="onnxruntime", options={"opset": "17"}),
        policy="mask",
        inputs=(
            describe_model(Checkpoint.open(model)),
            describe_files("adapter", adapter, names, 0.5),
        ),
        outputs=describe_outputs(out, {"model.w": "0" * 64}),
    )
    write_manifest(out, manifest)
    return out, manifest


def test_round_trip(tmp_path: Path) -> None:
    out, manifest = artefact(tmp_path)
    assert read_manifest(out) == manifest
    check_files(out, manifest)
    assert set(manifest.libraries) == {"ml_dtypes", "numpy", "pydantic"}
    model, adapter = manifest.inputs
    assert [f.name for f in model.files] == ["config.json", "model.safetensors"]
    assert list(model.tensors) == ["a"] and list(adapter.tensors) == ["lora_A"]
    assert (adapter.role, adapter.weight) == ("adapter", 0.5)
    assert [f.name for f in manifest.outputs.files] == ["model.onnx", "sub/model.data"]
    assert json.loads((out / MANIFEST).read_text())["schema"] == 1


def test_equal_inputs_give_equal_bytes_and_no_secret(tmp_path: Path) -> None:
    texts: list[bytes] = []
    for name in ("here", "there-under-another-name"):
        out, _ = artefact(tmp_path / name)
        texts.append((out / MANIFEST).read_bytes())
    assert texts[0] == texts[1]
    secrets = [str(Path.home()), socket.gethostname(), str(tmp_path), tmp_path.name, "here"]
    if len(getpass.getuser()) > 3:  # "vm" could be part of a digest's neighbour by chance
        secrets.append(getpass.getuser())
    for secret in (s for s in secrets if len(s) > 2):
        assert secret.encode() not in texts[0], secret


DIFFERENCES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a byte": (lambda o: (o / "model.onnx").write_bytes(b"grapH"), "model.onnx"),
    "shorter": (lambda o: (o / "sub/model.data").write_bytes(b"weight"), "sub/model.data"),
    "empty": (lambda o: (o / "sub/model.data").write_bytes(b""), "sub/model.data"),
    "missing": (lambda o: (o / "sub/model.data").unlink(), "sub/model.data"),
    "extra": (lambda o: (o / "extra.bin").touch(), "extra.bin"),
    "extra beside the manifest": (
        lambda o: (o / ".sparse-export/x").touch(),
        ".sparse-export/x",
    ),
    "link in its place": (
        lambda o: (
            (o / "model.onnx").rename(o.parent / "elsewhere"),
            (o / "model.onnx").symlink_to("../elsewhere"),
        ),
        "model.onnx",
    ),
    "linked folder": (
        lambda o: ((o / "sub").rename(o.parent / "s"), (o / "sub").symlink_to("../s")),
        "sub",
    ),
    "pipe in its place": (
        lambda o: ((o / "model.onnx").unlink(), os.mkfifo(o / "model.onnx")),
        "model.onnx",
    ),
    "folder in its place": (
        lambda o: ((o / "model.onnx").unlink(), (o / "model.onnx").mkdir()),
        "model.onnx",
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_each_difference_is_named(name: str, tmp_path: Path) -> None:
    change, file = DIFFERENCES[name]
    out, manifest = artefact(tmp_path)
    change(out)
    with pytest.raises(VerificationFailed) as caught:
        check_files(out, manifest)
    assert (caught.value.code, caught.value.file) == ("verify-hash", file)


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(out: Path) -> None:
        value = json.loads((out / MANIFEST).read_text())
        change(value)
        (out / MANIFEST).write_text(json.dumps(value))

    return apply


def rename_output(name: str) -> Callable[[Path], None]:
    return edit(lambda m: m["outputs"]["files"][0].update(name=name))


MALFORMED: dict[str, Callable[[Path], Any]] = {
    "missing": lambda o: (o / MANIFEST).unlink(),
    "empty": lambda o: (o / MANIFEST).write_text(""),
    "duplicate key": lambda o: (o / MANIFEST).write_text('{"schema": 1, "schema": 1}'),
    "list": lambda o: (o / MANIFEST).write_text("[]"),
    "unknown field": edit(lambda m: m.update(time="now")),
    "unknown field below": edit(lambda m: m["target"].update(path="/home/x")),
    "newer schema": edit(lambda m: m.update(schema=2)),
    "schema as text": edit(lambda m: m.update(schema="1")),
    "field missing": edit(lambda m: m.pop("outputs")),
    "number as text": edit(lambda m: m["outputs"]["files"][0].update(nbytes="5")),
    "negative size": edit(lambda m: m["outputs"]["files"][0].update(nbytes=-1)),
    "digest too short": edit(lambda m: m["inputs"][0]["tensors"].update(a="0" * 63)),
    "digest with a newline": edit(lambda m: m["inputs"][0]["tensors"].update(a="0" * 64 + "\n")),
    "path climbs": rename_output("../x"),
    "path climbs inside": rename_output("sub/../../x"),
    "path absolute": rename_output("/etc/passwd"),
    "path with backslash": rename_output("..\\x"),
    "path with NUL": rename_output("x\0"),
    "path empty": rename_output(""),
    "role unknown": edit(lambda m: m["inputs"][0].update(role="other")),
    "link out": lambda o: (
        shutil.move(o / MANIFEST, o.parent / "m"),
        (o / MANIFEST).symlink_to(o.parent / "m"),
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_manifest(name: str, tmp_path: Path) -> None:
    out, _ = artefact(tmp_path)
    MALFORMED[name](out)
    with pytest.raises(InputRefused) as caught:
        read_manifest(out)
    assert (caught.value.code, caught.value.file) == ("manifest-invalid", MANIFEST)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputRefused) as caught:
        read_manifest(tmp_path / "none")
    assert caught.value.code == "input-missing"
