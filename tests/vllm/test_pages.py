"""Pages of mapped weight files go back, and what they showed is still there."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from backends.vllm.plugin import pages
from backends.vllm.plugin.pages import Mapping, UsedPages, give_back, mappings, written_to

MANY = 1 << 20
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/pagemap").exists(), reason="the system has no /proc/self/pagemap"
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
    (found,) = [each for each in mappings() if covers(each, values)]
    assert written_to(found)
    give_back()
    assert values[-1] == 7
    del values
    mapped.close()


def test_a_tensor_in_plain_memory_is_not_touched() -> None:
    tensor = torch.arange(MANY)
    UsedPages(step=1).note(tensor)
    assert int(tensor.sum()) == MANY * (MANY - 1) // 2


def test_a_mapping_that_was_only_read_is_known(path: Path) -> None:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=3)
    values = np.frombuffer(mapped, np.uint8)
    assert values.any()
    (found,) = [each for each in mappings() if covers(each, values)]
    assert not written_to(found)
    del values
    mapped.close()


def test_a_system_that_does_not_tell_of_pages_keeps_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert written_to(Mapping(0x1000, 0x3000)) is False, "nothing is mapped there"
    monkeypatch.setattr(pages, "_PAGES", path.parent / "absent")
    assert written_to(Mapping(0x1000, 0x3000))


def test_a_large_file_is_looked_at_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []

    def look() -> int:
        looks.append(1)
        return MANY * 8

    monkeypatch.setattr(pages, "give_back", look)
    used, tensor = UsedPages(step=1), torch.empty(128)
    for _ in range(MANY * 8 // tensor.nbytes):
        used.note(tensor)
    assert len(looks) == pages.LOOKS


def covers(mapping: Mapping, values: np.ndarray) -> bool:
    return mapping.start <= values.ctypes.data < mapping.end


def test_mappings_are_read_by_their_lines(tmp_path: Path) -> None:
    text = (
        "1000-3000 r--p 00000000 08:01 12  /models/my model.safetensors\n"
        "7000-8000 r--p 00000000 08:01 13  /usr/lib/libc.so\n"
        "9000-a000 rw-p 00000000 00:00 0\n"
    )
    file = tmp_path / "maps"
    file.write_text(text)
    assert list(mappings(file)) == [Mapping(0x1000, 0x3000)]
    assert list(mappings(tmp_path / "absent")) == []
