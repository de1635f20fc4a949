from __future__ import annotations

from pathlib import Path

from deltamend.methods.pages import all_pages

DOCS = Path(__file__).parents[2] / "docs" / "methods"


def test_the_pages_of_the_documentation_are_up_to_date() -> None:
    for file, text in all_pages().items():
        assert (DOCS / file).read_text(encoding="utf-8") == text, "run python -m deltamend.methods.pages docs/methods"
