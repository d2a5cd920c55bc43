"""jinja2's sandbox in place of lm-eval's open environment, while tasks are built and scored."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from exporter.errors import UsageError


@contextmanager
def sandboxed() -> Generator[None]:
    """Templates cannot reach Python's internals, and a field that is null is an error.

    lm-eval renders with a module's variable, so that is what is replaced; a null would otherwise
    be rendered as the word "None" and be scored.

    Raises:
        UsageError: `usage` where the installed lm-eval renders in another way.
    """
    import lm_eval.utils
    from jinja2 import BaseLoader, StrictUndefined, UndefinedError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def finalize(value: Any) -> Any:
        if value is None:
            raise UndefinedError("a field of the template is null")
        return value

    before: Any = lm_eval.utils.env
    safe = ImmutableSandboxedEnvironment(
        loader=BaseLoader(),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=finalize,
    )
    safe.filters["regex_replace"] = before.filters["regex_replace"]
    lm_eval.utils.env = safe
    try:
        _require_at_work(lm_eval.utils.apply_template)
        yield
    finally:
        lm_eval.utils.env = before


def _require_at_work(render: Callable[[str, dict[str, Any]], str]) -> None:
    from jinja2.exceptions import SecurityError

    try:
        render("{{ x.__class__.__mro__ }}", {"x": 1})
    except SecurityError:
        return
    raise UsageError(
        "usage",
        "the installed lm-eval renders templates outside the sandbox",
        expected="lm-eval 0.4.13, or another that renders with lm_eval.utils.env",
        hint='pip install "lm-eval==0.4.13"',
    )
