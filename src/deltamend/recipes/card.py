"""The README.md of a fine-tuned model: what it was trained from, by which recipe and with which settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from deltamend.machine.escaping import markdown_code, markdown_text

if TYPE_CHECKING:
    from deltamend.recipes.fine_tuning import FinetuneRecord


def render_card(record: FinetuneRecord) -> str:
    """The card, in Markdown with front matter."""
    front = {"base_model": record.base, "library_name": "transformers", "tags": ["deltamend", record.recipe]}
    rows = [
        ("base", markdown_code(record.base)),
        ("recipe", markdown_code(record.recipe)),
        *((f"setting {name}", markdown_code(str(value))) for name, value in record.settings.items()),
        ("old examples", record.old_examples),
        *((name.replace("_", " "), markdown_code(str(value))) for name, value in record.regime.items()),
        ("seed", str(record.seed)),
        *((f"examples, {markdown_text(name)}", markdown_code(digest)) for name, digest in record.data.items()),
        ("loss", f"{record.first_loss:.4f} at the beginning, {record.last_loss:.4f} at the end, in nats a token"),
    ]
    return "\n".join(
        [
            "---",
            f"{yaml.safe_dump(front, sort_keys=True, allow_unicode=True)}---",
            "",
            f"# {markdown_text(record.base)}, fine-tuned by the recipe {record.recipe}",
            "",
            "Written by `deltamend finetune`; `finetune.json` says the same for programs.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
        ]
    )
