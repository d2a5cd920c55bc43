"""Which engine runs an artefact here: the target's own, or the one it names in its place."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from exporter.contract import Session, Target
from exporter.errors import EngineUnfit

LoadTarget = Callable[[str], Target]


@dataclass(frozen=True)
class Runner:
    """The target whose engine runs the artefact; `fallback` says why it is not the target's own."""

    target: Target
    fallback: str | None = None


def choose_runner(target: Target, load_target: LoadTarget | None) -> Runner:
    """The target itself where its engine is here, else what its `fallback()` names.

    Raises:
        EngineUnfit: `engine-missing` where neither can run.
    """
    status = target.runtime()
    if status.available:
        return Runner(target)
    name = getattr(target, "fallback", None)
    if not callable(name) or load_target is None:
        raise EngineUnfit("engine-missing", f"{target.name}: {status.reason}")
    other = load_target(str(name()))
    theirs = other.runtime()
    if not theirs.available:
        raise EngineUnfit(
            "engine-missing",
            f"{target.name}: {status.reason}; {other.name} in its place: {theirs.reason}",
        )
    why = (
        f"{target.name} cannot run here ({status.reason}); {other.name} ran the same files, "
        f"so whether {target.name} accepts them, and its numbers, are not known"
    )
    return Runner(other, why)


@contextmanager
def opened(target: Target, folder: Path) -> Generator[Session, None, None]:
    """A session of `target`, closed at the end whatever happens."""
    session = target.open(folder)
    try:
        yield session
    finally:
        session.close()
