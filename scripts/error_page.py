"""Write docs/reference/errors.md from the catalogue; the exit statuses are read off the code.

`python scripts/error_page.py` writes the page; tests/cli/test_error_page.py keeps it in step.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from exporter import errors
from exporter.errors import CATALOGUE, SparseExportError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "errors.md"
PACKAGES = ("exporter", "backends", "bench", "harness")
HEAD = """# Errors

Made from `exporter/errors.py` by `python scripts/error_page.py`; do not edit.

Every error a user can cause has a code, and says what was found, what was expected, in which
file and tensor, and what to do. With `--json` it is an object on standard output:

```json
{"error": {"code": "...", "found": "...", "expected": "...", "file": "...", "tensor": "...",
           "hint": "...", "exit_code": 3}}
```

Exit status of `sparse-export`: 0 published, 1 verification failed, 2 usage, 3 input refused,
4 engine missing or unfit, 130 interrupted. After any but 0 nothing was published, and an output
that was there before is as it was. (`sparse-bench` has statuses of its own: [bench](bench.md).) The
cure is the general one; where more is known, the message says more.

| code | exit | cause | cure |
|---|---|---|---|
"""


def exit_codes() -> dict[str, set[int]]:
    """Code -> exit statuses of the classes that it is raised with, anywhere in the packages."""
    classes = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, SparseExportError)
    }
    found: dict[str, set[int]] = {code: set() for code in CATALOGUE}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name, code in _raised(ast.parse(path.read_text(encoding="utf-8")), classes):
                found[code].add(classes[name])
    return found


def page() -> str:
    """The whole page."""
    found = exit_codes()
    rows = [
        f"| `{code}` | {', '.join(map(str, sorted(found[code])))} | {kind.cause} | {kind.cure} |"
        for code, kind in CATALOGUE.items()
    ]
    return HEAD + "\n".join(rows) + "\n"


def _raised(tree: ast.Module, classes: dict[str, int]) -> Iterator[tuple[str, str]]:
    """(class, code) of every error that a module makes."""
    for scope in ast.walk(tree):
        if isinstance(scope, ast.ClassDef):
            yield from _own(scope, classes)
        if not isinstance(scope, ast.FunctionDef):
            continue
        for call in ast.walk(scope):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = getattr(call.func, "id", None) or getattr(call.func, "attr", "")
            if name in classes:
                yield from ((name, code) for code in _codes(call.args[0], scope))


def _own(scope: ast.ClassDef, classes: dict[str, int]) -> Iterator[tuple[str, str]]:
    """What a class of errors of one code hands to the class above it."""
    bases = [b.id for b in scope.bases if isinstance(b, ast.Name) and b.id in classes]
    for call in ast.walk(scope):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
            yield from ((b, c) for b in bases for a in call.args[:1] for c in _in([a]))


def _codes(argument: ast.expr, scope: ast.FunctionDef) -> set[str]:
    """Codes in the argument itself, or in what was assigned to the variable that it is."""
    where: list[ast.AST] = [argument]
    if isinstance(argument, ast.Name):
        where += [
            node.value
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == argument.id for t in node.targets)
        ]
    return _in(where)


def _in(where: list[ast.AST]) -> set[str]:
    constants = [n for part in where for n in ast.walk(part) if isinstance(n, ast.Constant)]
    return {n.value for n in constants if isinstance(n.value, str)} & CATALOGUE.keys()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
