"""Pages of mapped weight files go back, and what they showed is still there."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from backends.vllm.plugin.pages import UsedPages, give_back, mappings

MANY = 1 << 20
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="the system has no /proc/self/smaps"
)


def resident(path: Path) -> int:
    """Bytes of a mapped file in this process, by the system's own count."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(" ", 1)[0]
        if not head.endswith(":"):
            inside = line.endswith(str(path))
        elif inside and head == "Rss:":
            found += int(line.split()[1]) << 10
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(MANY), "b": torch.ones(MANY)}, file)
    return file


def test_used_pages_go_back_and_can_be_read_again(path: Path) -> None:
    with safe_open(path, framework="pt") as opened:
        a, b = opened.get_tensor("a"), opened.get_tensor("b")
        used = UsedPages(step=a.nbytes + b.nbytes)
        assert int(a.sum()) == MANY * (MANY - 1) // 2
        used.note(a)
        assert resident(path) >= a.nbytes, "not before a step is full"
        assert int(b.sum()) == MANY
        used.note(b)
        assert resident(path) < a.nbytes // 8
        assert int(a[MANY - 1]) == MANY - 1 and int(b.sum()) == MANY


def test_a_mapping_that_was_written_to_is_left_alone(path: Path) -> None:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=3)
    values = np.frombuffer(mapped, np.uint8)
    values[-1] = 7  # a page of this process alone: dropping it would bring the old byte back
    assert sum(found.changed for found in mappings()) > 0
    give_back()
    assert values[-1] == 7
    del values
    mapped.close()


def test_a_tensor_in_plain_memory_is_not_touched() -> None:
    tensor = torch.arange(MANY)
    UsedPages(step=1).note(tensor)
    assert int(tensor.sum()) == MANY * (MANY - 1) // 2


def test_mappings_are_read_by_their_lines(tmp_path: Path) -> None:
    text = (
        "1000-3000 r--p 00000000 08:01 12  /models/my model.safetensors\n"
        "Rss:   8 kB\nAnonymous:   4 kB\nVmFlags: rd\n"
        "7000-8000 r--p 00000000 08:01 13  /usr/lib/libc.so\nAnonymous:   0 kB\n"
        "9000-a000 rw-p 00000000 00:00 0\nAnonymous:   4 kB\n"
    )
    file = tmp_path / "smaps"
    file.write_text(text)
    ((start, end, changed),) = [(m.start, m.end, m.changed) for m in mappings(file)]
    assert (start, end, changed) == (0x1000, 0x3000, 4096)
    assert list(mappings(tmp_path / "absent")) == []
