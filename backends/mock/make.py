"""Artefact folders of the mock: its settings, a self-test of the sound mock, a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from backends.mock.session import MockSession
from backends.mock.spec import NAME, MockSpec
from exporter.errors import UsageError
from exporter.store.dtypes import F32
from exporter.store.manifest import (
    META,
    Manifest,
    TargetEntry,
    describe_outputs,
    library_versions,
    write_manifest,
)
from exporter.verify.prompts import Prompts
from exporter.verify.selftest import record
from exporter.verify.selftest_file import NAME as SELFTEST
from exporter.verify.selftest_file import write_selftest

_PROMPTS = Prompts(((1, 2, 3), (4, 5)), 4, "random ids")


class _Nowhere:
    def begin_prompt(self) -> None: ...

    def add(self, logits: F32) -> None: ...


def make_mock(folder: Path, spec: MockSpec) -> None:
    """Write a folder that `sparse-bench` takes as any other artefact.

    Its self-test is that of a mock that is neither wrong nor slow.

    Raises:
        UsageError: `output-exists`.
    """
    if folder.exists():
        raise UsageError("output-exists", "it is there already", file=str(folder))
    (folder / META).mkdir(parents=True)
    text = spec.model_dump_json(indent=2, exclude_defaults=True) + "\n"
    (folder / NAME).write_text(text, encoding="utf-8")
    sound = MockSession(MockSpec(ttft_ms=0, tpot_ms=0))
    write_selftest(folder / META / SELFTEST, record(sound, _PROMPTS, _Nowhere()))
    manifest = Manifest(
        schema=1,
        tool=version("sparse-export"),
        libraries=library_versions(),
        target=TargetEntry(name="mock"),
        policy=None,
        inputs=(),
        outputs=describe_outputs(folder, {}),
    )
    write_manifest(folder, manifest)


def parse_settings(pairs: Sequence[str]) -> MockSpec:
    """`NAME=VALUE` texts as settings.

    Raises:
        UsageError: `usage`.
    """
    parts = [pair.partition("=") for pair in pairs]
    raw = {name: value for name, _, value in parts}
    try:
        return MockSpec.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            "usage",
            f"{where}: {first['msg']}",
            expected=f"NAME=VALUE, NAME one of {', '.join(MockSpec.model_fields)}",
        ) from None
