"""Results read back from files, strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.comparison import CompareResult, RunResult
from bench.results import AbResult
from exporter.errors import InputRefused, UsageError

_KINDS: dict[str, type[RunResult] | type[CompareResult] | type[AbResult]] = {
    "run": RunResult,
    "compare": CompareResult,
    "ab": AbResult,
}


def read_result(path: Path) -> RunResult | CompareResult | AbResult:
    """A result of any kind.

    Raises:
        InputRefused: `input-unreadable`, `json-invalid`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw: Any = json.loads(text)
        return _KINDS[raw["kind"]].model_validate_json(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused("input-unreadable", str(error), file=str(path)) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(p) for p in first["loc"])
        raise InputRefused("json-invalid", f"{where}: {first['msg']}", file=str(path)) from None
    except (ValueError, KeyError, TypeError) as error:
        found = f"no result of sparse-bench: {error}"
        raise InputRefused("json-invalid", found, file=str(path)) from None


def read_run(path: Path) -> RunResult:
    """A result of `sparse-bench run`.

    Raises:
        UsageError: `usage` for another kind; and as `read_result`.
    """
    result = read_result(path)
    if not isinstance(result, RunResult):
        raise UsageError(
            "usage", f"a result of `{result.kind}`", expected="one of `run`", file=str(path)
        )
    return result
