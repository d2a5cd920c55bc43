"""What the user asks of calibration: `--calibration FILE[:options]` and `--held-out FILE`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from exporter.errors import UsageError

LENGTH = 512  # tokens in a window, where the model's positions allow it
_MOST = 1 << 24  # tokens: their hidden states must fit in memory


@dataclass(frozen=True)
class CalibrationRequest:
    """Text (UTF-8) or token ids (.json, .safetensors), and how much of it is used.

    `tokens` are for the Gram matrices, `held_out` for the perplexity, both at most; `length` is
    that of a window, None for 512 or the model's positions. `evaluation` is a file of its own for
    the perplexity; without it the last windows of `file` are held out.
    """

    file: Path
    tokens: int = 32_768
    held_out: int = 8_192
    length: int | None = None
    evaluation: Path | None = None

    @classmethod
    def parse(cls, text: str, evaluation: Path | None = None) -> CalibrationRequest:
        """Split `FILE:tokens=N,held_out=N,length=N`; a file of that whole name wins.

        Raises:
            UsageError: `usage`.
        """
        if Path(text).exists() or ":" not in text:
            return cls(Path(text), evaluation=evaluation)
        path, _, options = text.rpartition(":")
        numbers: dict[str, int] = {}
        for part in options.split(","):
            key, equals, value = part.partition("=")
            name = key.replace("-", "_")
            if not equals or name in numbers or name not in _OPTIONS:
                raise _bad(part, text, f"once each: {', '.join(f'{o}=N' for o in _OPTIONS)}")
            if not value.isdecimal() or not 2 <= int(value) <= _MOST:
                raise _bad(part, text, f"a whole number from 2 to {_MOST}")
            numbers[name] = int(value)
        return replace(cls(Path(path), evaluation=evaluation), **numbers)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read."""
        return (self.file, *((self.evaluation,) if self.evaluation else ()))


_OPTIONS = tuple(f.name for f in fields(CalibrationRequest) if "int" in str(f.type))


def _bad(part: str, text: str, expected: str) -> UsageError:
    return UsageError("usage", f"{part!r} in --calibration {text!r}", expected=expected)
