"""The documentation of errors is that of the catalogue, and the index names every page."""

from __future__ import annotations

import pytest

from exporter.errors import CATALOGUE
from scripts.error_page import PAGE, exit_codes, page

DOCS = PAGE.parent.parent


@pytest.mark.parametrize("code", CATALOGUE)
def test_every_code_is_raised_somewhere_and_documented(code: str) -> None:
    statuses = exit_codes()[code]
    assert statuses <= {1, 2, 3, 4} and statuses, f"nothing raises {code}"
    assert f"\n| `{code}` | " in PAGE.read_text(encoding="utf-8")


def test_the_page_is_in_step() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python scripts/error_page.py`"


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    pages = [p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")]
    missing = [p for p in pages if p != "README.md" and f"]({p})" not in index]
    assert missing == []


def test_no_link_of_the_documentation_leads_nowhere() -> None:
    import re

    for file in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text(encoding="utf-8")):
            assert (file.parent / link).exists(), f"{file.relative_to(DOCS.parent)}: {link}"


def test_every_cure_says_what_to_do() -> None:
    for kind in CATALOGUE.values():
        assert kind.cause.endswith(".") and kind.cure.endswith(".")
        assert "|" not in kind.cause + kind.cure, "it would break the table"
