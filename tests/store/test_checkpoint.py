"""Reading a checkpoint: values, row blocks, odd addresses, identity, threads, changed files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from exporter.errors import InputRefused
from exporter.store.checkpoint import Checkpoint
from exporter.store.dtypes import DType
from tests.attacks.corpus import write_model

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((17, 33)).astype(np.float32)
    return {
        "bf16": wide.astype(ml_dtypes.bfloat16),
        "f16": wide.astype(np.float16),
        "f32": wide,
        "f64": rng.standard_normal(9),
        "scalar": np.float32(-0.0).reshape(()),
        "empty": np.zeros((0, 3), np.float32),
        "special": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40], np.float32),
    }


def put_at_odd_address(path: Path, values: dict[str, np.ndarray], shift: int) -> None:
    """A sound file whose data start `shift` bytes past a multiple of 8, in any order of types."""
    header, data = {}, b""
    names = {"bf16": "BF16", "f16": "F16", "f32": "F32", "f64": "F64"}
    for name, array in values.items():
        kind = names.get(name, "F32")
        header[name] = {
            "dtype": kind, "shape": array.shape,
            "data_offsets": [len(data), len(data) + array.nbytes],
        }  # fmt: skip
        data += array.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + shift)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("shift", range(8))
def test_values_at_any_address(shift: int, tmp_path: Path) -> None:
    root = write_model(tmp_path / "m")
    wanted = tensors()
    put_at_odd_address(root / "model.safetensors", wanted, shift)
    checkpoint = Checkpoint.open(root)
    assert list(checkpoint.entries) == sorted(wanted)
    for name, array in wanted.items():
        whole = checkpoint.rows(name)
        assert whole.dtype == np.float32 and whole.flags.writeable
        assert whole.shape == array.shape
        assert whole.tobytes() == array.astype(np.float32).tobytes()
        seen = checkpoint.view(name)
        assert seen.dtype == array.dtype and seen.tobytes() == array.tobytes()
        assert not seen.flags.writeable or seen.size == 0
    checkpoint.close()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 17), st.integers(0, 17), st.sampled_from(["bf16", "f16", "f32"]))
def test_row_blocks(tmp_path: Path, r0: int, r1: int, name: str) -> None:
    root = tmp_path / "m"
    if not root.exists():
        put_at_odd_address(write_model(root) / "model.safetensors", tensors(), 3)
    checkpoint = Checkpoint.open(root)
    if r0 > r1:
        with pytest.raises(IndexError):
            checkpoint.rows(name, r0, r1)
        return
    wanted = tensors()[name][r0:r1]
    assert checkpoint.rows(name, r0, r1).tobytes() == wanted.astype(np.float32).tobytes()
    assert checkpoint.view(name, r0, r1).tobytes() == wanted.tobytes()
    with pytest.raises(IndexError):
        checkpoint.view(name, r0, 18)


def test_rows_are_the_callers_own(tmp_path: Path) -> None:
    root = write_model(tmp_path / "m")
    checkpoint = Checkpoint.open(root)
    first = checkpoint.rows("a")
    first[:] = 7
    assert checkpoint.rows("a").tolist() == list(range(8))
    assert load_file(root / "model.safetensors")["a"].tolist() == list(range(8))


def test_close_with_a_view_alive(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_model(tmp_path / "m"))
    view = checkpoint.view("a")
    checkpoint.close()
    checkpoint.close()
    assert view.tolist() == checkpoint.view("a").tolist() == list(range(8))


def test_identity_does_not_see_the_sharding(tmp_path: Path) -> None:
    a = np.arange(8, dtype=np.float32)
    b = (a + 1).astype(np.float16)
    alike = [
        write_model(tmp_path / "1", {"model-00001-of-00001.safetensors": {"a": a, "b": b}}),
        write_model(tmp_path / "2", {ONE: {"a": a}, TWO: {"b": b}}),
        write_model(tmp_path / "3", {ONE: {"b": b}, TWO: {"a": a}}),
    ]
    assert len({Checkpoint.open(r).identity() for r in alike}) == 1
    other = [
        {"a": b, "b": a},
        {"a": a, "c": b},
        {"a": a.reshape(2, 4), "b": b},
        {"a": a.view(np.int32), "b": b},
        {"a": a, "b": b + 1},
        {"a": a},
    ]
    folders = [write_model(tmp_path / f"o{i}", {ONE: t}) for i, t in enumerate(other)]
    assert len({Checkpoint.open(r).identity() for r in [alike[0], *folders]}) == len(other) + 1


def test_digest_of_a_tensor(tmp_path: Path) -> None:
    import hashlib

    a = np.arange(8, dtype=np.float32)
    checkpoint = Checkpoint.open(write_model(tmp_path / "m", {ONE: {"a": a, "e": a[:0]}}))
    wanted = hashlib.sha256(a.tobytes()).hexdigest()
    assert checkpoint.tensor_sha256("a") == wanted  # by itself
    steps: list[tuple[str, int, int]] = []
    files = checkpoint.digests(lambda *step: steps.append(step))
    assert steps[-1][1:] == (32, 32)
    assert checkpoint.tensor_sha256("a") == wanted  # remembered
    assert checkpoint.tensor_sha256("e") == hashlib.sha256(b"").hexdigest()
    for digest in files:
        data = (checkpoint.root / digest.record.name).read_bytes()
        assert digest.record.sha256 == hashlib.sha256(data).hexdigest()
        assert digest.record.nbytes == len(data)
    assert {d.record.name for d in files} == {ONE, "config.json", "model.safetensors.index.json"}


def test_many_threads_read_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shards = {
        f"model-{i:05}-of-00040.safetensors": {f"t{i}": rng.standard_normal((64, 64), np.float32)}
        for i in range(40)  # more files than maps are kept
    }
    checkpoint = Checkpoint.open(write_model(tmp_path / "m", shards))
    wanted = {n: a for tensors in shards.values() for n, a in tensors.items()}

    def check(i: int) -> bool:
        name = f"t{i % 40}"
        rows = checkpoint.rows(name, i % 60, i % 60 + 4) == wanted[name][i % 60 : i % 60 + 4]
        return bool(rows.all() and (checkpoint.view(name) == wanted[name]).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(400)))
    checkpoint.close()


@pytest.mark.parametrize("how", ["shortened", "replaced", "removed", "rewritten"])
def test_a_file_that_changes_is_refused(how: str, tmp_path: Path) -> None:
    root = write_model(tmp_path / "m")
    path = root / "model.safetensors"
    checkpoint = Checkpoint.open(root)
    data = path.read_bytes()
    if how == "shortened":
        os.truncate(path, len(data) - 8)
    elif how == "replaced":
        (root / "new").write_bytes(data)
        (root / "new").rename(path)
    elif how == "removed":
        path.unlink()
    else:
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
    for read in (checkpoint.rows, checkpoint.view, checkpoint.tensor_sha256):
        with pytest.raises(InputRefused) as caught:
            read("a")
        assert caught.value.code == ("input-missing" if how == "removed" else "input-unreadable")


def test_errors_and_short_reads_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(write_model(tmp_path / "m"))
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, out, at: real(fd, [out[0][:3]], at))
    assert checkpoint.rows("a").tolist() == list(range(8))

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    for read in (checkpoint.rows, checkpoint.tensor_sha256):
        with pytest.raises(InputRefused) as caught:
            read("a")
        assert (caught.value.code, caught.value.file) == ("input-unreadable", "model.safetensors")


def test_memory_follows_the_block(tmp_path: Path) -> None:
    """Reading and hashing 256 MiB in blocks adds less than 48 MiB to the peak of the process."""
    from exporter.store.writer import SafetensorsWriter

    root = write_model(tmp_path / "m")
    (root / "model.safetensors").unlink()
    layout = [("w", DType.BF16, (32768, 4096))]
    with SafetensorsWriter(root / "model.safetensors", layout) as writer:
        for _ in range(32):
            writer.write("w", np.ones((1024, 4096), ml_dtypes.bfloat16))
        writer.close()
    code = (
        "import sys; from pathlib import Path\n"
        "from exporter.memory import peak_rss_bytes as peak\n"
        "from exporter.store.checkpoint import Checkpoint\n"
        "c = Checkpoint.open(Path(sys.argv[1])); before = peak()\n"
        "total = sum(float(c.rows('w', r, r + 256).sum()) for r in range(0, 32768, 256))\n"
        "assert total == 32768 * 4096, total\n"
        "c.identity(); print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 48 << 20


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    checkpoint = Checkpoint.open(write_model(tmp_path / "m"))
    checkpoint.rows("a")
    checkpoint.view("a")
    checkpoint.identity()
    checkpoint.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_store_imports_no_framework() -> None:
    code = (
        "import sys, exporter.store.checkpoint, exporter.store.folder, exporter.store.manifest\n"
        "assert not {'torch', 'transformers', 'safetensors', 'pickle5'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
