"""The documentation pages of the recipes: `python -m deltamend.recipes.pages docs/recipes benchmarks/results/recipes/forgetting.json`."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltamend.methods.pages import ParameterRow, rows_of
from deltamend.recipes.recipe import Recipe
from deltamend.recipes.registry import RECIPES


def setting_rows(recipe: type[Recipe]) -> list[ParameterRow]:
    """The settings of a recipe."""
    return rows_of(recipe)


def page(recipe: type[Recipe], record: Mapping[str, Any]) -> str:
    """The page of a recipe, in Markdown.

    Args:
        recipe: its class.
        record: what `benchmarks/recipes/forgetting.py` wrote.
    """
    rows = setting_rows(recipe)
    lines = [f"# {recipe.name}", "", recipe.summary, "", inspect.getdoc(recipe) or "", "", f"Source: {recipe.source}."]
    lines += ["", f"It needs {recipe.needs}.{_stand_in(recipe)}"]
    if recipe.full_only:
        lines += ["", "It trains the weights themselves and no adapter, so `--lora-rank` is refused."]
    if rows:
        lines += ["", "| setting | default | range | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{row.name}` | {' | '.join(text.replace('|', chr(92) + '|') for text in row[1:])} |" for row in rows
        ]
    else:
        lines += ["", "It has no settings."]
    lines += ["", "## On a toy", "", _on_the_toy(recipe.name, record)]
    command = f"deltamend finetune BASE --data chats.jsonl OUT --recipe {recipe.name}"
    return "\n".join([*lines, "", f"`{command}`", ""])


def _stand_in(recipe: type[Recipe]) -> str:
    if not recipe.uses_old:
        return ""
    return " Where no old examples are given with `--old`, 48 texts of 96 tokens that the base writes itself stand in for them."


def _on_the_toy(name: str, record: Mapping[str, Any]) -> str:
    """What the toy says of a recipe; every sentence follows from the record."""
    rows, count = record["summary"], len(record["seeds"])
    row, plain, base = rows[name], rows["plain"], rows["base"]
    setting = (
        f"A small network that tells {_share(base['old'])} of the old task's held-out examples right is trained on a second task, over "
        f"{count} seeds (means, and 95 % intervals of paired differences)."
    )
    kept = f"After it, {_share(row['old'])} of the old task's and {_share(row['new'])} of the new task's are right"
    if name == "plain":
        return f"{setting} {kept}."
    verdicts = {"old": _verdict(row["old_beside_plain"]), "new": _verdict(row["new_beside_plain"])}
    forgets = {
        "more": "It forgets less than plain training",
        "less": "It forgets more than plain training",
        "same": "It is not shown to forget less than plain training",
    }[verdicts["old"]]
    learns = {
        "more": "and learns the new task better",
        "less": "and learns the new task less well",
        "same": "and no difference is shown in what it learns",
    }[verdicts["new"]]
    cost = f"It took {row['time']:g} times the processor time of plain training"
    held = f" and held {row['held']:g} times the size of the weights besides" if row["held"] else ""
    return (
        f"{setting} {kept}; after plain training, {_share(plain['old'])} and {_share(plain['new'])}. {forgets} "
        f"({_points(row['old_beside_plain'])} points), {learns} ({_points(row['new_beside_plain'])}). {cost}{held}. "
        "These are the settings above, and a toy of 29,000 weights: they say nothing of a language model."
    )


def _verdict(interval: list[float]) -> str:
    return "more" if interval[1] > 0 else "less" if interval[2] < 0 else "same"


def _share(interval: list[float]) -> str:
    return f"{100 * interval[0]:.1f} %"


def _points(interval: list[float]) -> str:
    mean, low, high = (100 * one for one in interval)
    return f"{mean:+.1f}, {low:+.1f} to {high:+.1f}"


def index(record: Mapping[str, Any]) -> str:
    """The list of all pages, in Markdown."""
    lines = [
        "# Training recipes",
        "",
        "How to fine-tune so that less is forgotten in the first place: `deltamend finetune BASE --data chats.jsonl OUT --recipe NAME`. "
        "[How to fine-tune](../how-to/finetune.md) shows it step by step.",
        "",
        "| recipe | what it does | needs | source |",
        "|---|---|---|---|",
    ]
    lines += [f"| [{one.name}]({one.name}.md) | {one.summary} | {one.needs} | {one.source} |" for one in RECIPES]
    rows = record["summary"]
    lines += [
        "",
        f"On a toy, over {len(record['seeds'])} seeds, at these settings: shares of held-out examples told right, and the difference to "
        "plain training in points with its 95 % interval.",
        "",
        "| recipe | old task | beside plain | new task | beside plain | time |",
        "|---|---|---|---|---|---|",
    ]
    for one in RECIPES:
        row = rows[one.name]
        old, new = (
            _points(row[f"{what}_beside_plain"]) if f"{what}_beside_plain" in row else "–" for what in ("old", "new")
        )
        time = f"×{row['time']:g}" if "time" in row else "×1"
        lines.append(f"| {one.name} | {_share(row['old'])} | {old} | {_share(row['new'])} | {new} | {time} |")
    lines += [
        "",
        "The toy was measured by `python -m benchmarks.recipes.forgetting benchmarks/results/recipes/forgetting.json`. It is a network "
        "of 29,000 weights on patterns with noise, and no language model.",
    ]
    return "\n".join([*lines, ""])


def all_pages(record: Mapping[str, Any]) -> dict[str, str]:
    """Every generated file of docs/recipes by its name."""
    return {"README.md": index(record)} | {f"{one.name}.md": page(one, record) for one in RECIPES}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    measured = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    folder.mkdir(exist_ok=True)
    for file, text in all_pages(measured).items():
        (folder / file).write_text(text, encoding="utf-8")
