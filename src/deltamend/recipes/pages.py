"""The documentation pages of the recipes, from their docstrings and from what was measured: `python -m deltamend.recipes.pages docs/recipes`."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltamend.methods.pages import ParameterRow, rows_of
from deltamend.recipes.recipe import OWN_TEXTS, OWN_TOKENS, Recipe
from deltamend.recipes.registry import RECIPES

RECORD = Path("benchmarks/results/recipes/forgetting.json")
"""What was measured, from the root of the repository."""


def read_record(root: Path) -> dict[str, Any]:
    """What `benchmarks/recipes/forgetting.py` wrote, in a checkout."""
    found: dict[str, Any] = json.loads((root / RECORD).read_text(encoding="utf-8"))
    return found


def setting_rows(recipe: type[Recipe]) -> list[ParameterRow]:
    """The settings of a recipe."""
    return rows_of(recipe)


def example_command(recipe: type[Recipe]) -> str:
    """The command that trains by a recipe, with old examples where it takes some."""
    old = " --old old.jsonl" if recipe.uses_old else ""
    return f"deltamend finetune BASE --data chats.jsonl OUT --recipe {recipe.name}{old}"


def needs_of(recipe: type[Recipe]) -> str:
    """What a recipe needs, in whole sentences."""
    found = f"It needs {recipe.needs}."
    if recipe.uses_old:
        found += (
            f" Where no old examples are given with `--old`, {OWN_TEXTS} texts of {OWN_TOKENS} tokens, which the base writes itself, "
            "stand in for them."
        )
    if recipe.full_only:
        found += " It trains the weights themselves and no adapter, so `--lora-rank` is refused."
    return found


def page(recipe: type[Recipe], record: Mapping[str, Any]) -> str:
    """The page of a recipe, in Markdown."""
    rows = setting_rows(recipe)
    lines = [f"# {recipe.name}", "", recipe.summary, "", inspect.getdoc(recipe) or "", "", f"Source: {recipe.source}."]
    lines += ["", needs_of(recipe)]
    if rows:
        lines += ["", "| setting | default | range | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{row.name}` | {' | '.join(text.replace('|', chr(92) + '|') for text in row[1:])} |" for row in rows
        ]
    else:
        lines += ["", "It has no settings."]
    lines += ["", f"    {example_command(recipe)}", "", "## On a toy", "", _on_the_toy(recipe.name, record)]
    if recipe.name != "plain":
        lines += ["", _cost(record["summary"][recipe.name])]
    lines += ["", "[All recipes](README.md) says how this was measured."]
    return "\n".join([*lines, ""])


def _cost(row: Mapping[str, Any]) -> str:
    held = (
        f"and held {row['held']:g} times the size of the weights in memory besides"
        if row["held"]
        else "and held nothing besides"
    )
    return f"There it took {row['time']:g} times the processor time of plain training, getting ready included, {held}."


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
    forgets = {
        "more": "It forgets less than plain training",
        "less": "It forgets more than plain training",
        "same": "It is not shown to forget less than plain training",
    }[_verdict(row["old_beside_plain"])]
    learns = {
        "more": "and learns the new task better",
        "less": "and learns the new task less well",
        "same": "and no difference is shown in what it learns",
    }[_verdict(row["new_beside_plain"])]
    return (
        f"{setting} {kept}; after plain training, {_share(plain['old'])} and {_share(plain['new'])}. {forgets} "
        f"({_points(row['old_beside_plain'])} points), {learns} ({_points(row['new_beside_plain'])}). "
        "These are its default settings, and a toy of 29,000 weights: they say nothing of a language model."
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
        "How to fine-tune so that less is forgotten in the first place. [How to fine-tune](../how-to/finetune.md) shows it step by step; "
        "`deltamend recipes` lists them in a terminal.",
        "",
        "| recipe | what it does | needs | source |",
        "|---|---|---|---|",
    ]
    lines += [f"| [{one.name}]({one.name}.md) | {one.summary} | {one.needs} | {one.source} |" for one in RECIPES]
    return "\n".join([*lines, *_toy_table(record), ""])


def _toy_table(record: Mapping[str, Any]) -> list[str]:
    rows = record["summary"]
    lines = [
        "",
        "## On a toy",
        "",
        f"Measured by `python -m benchmarks.recipes.forgetting {RECORD}`: a network of 29,000 weights learns patterns with "
        f"noise, and then the same patterns with their pixels in another order. Over {len(record['seeds'])} seeds, at the default settings: shares "
        "of held-out examples told right, and the difference to plain training in points with its 95 % interval; processor time beside "
        "plain training, getting ready included; and what is held in memory besides, in copies of the weights, without what a step needs for a "
        "moment. It is no language model, and says nothing of one: there, the length of the old examples decides what they cost.",
        "",
        "| recipe | old task | beside plain | new task | beside plain | time | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in RECIPES:
        row = rows[one.name]
        old, new = (
            _points(row[f"{what}_beside_plain"]) if f"{what}_beside_plain" in row else "–" for what in ("old", "new")
        )
        cost = f"×{row.get('time', 1):g} | {row.get('held', 0):g}"
        lines.append(f"| {one.name} | {_share(row['old'])} | {old} | {_share(row['new'])} | {new} | {cost} |")
    return lines


def all_pages(record: Mapping[str, Any]) -> dict[str, str]:
    """Every generated file of docs/recipes by its name."""
    return {"README.md": index(record)} | {f"{one.name}.md": page(one, record) for one in RECIPES}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for file, text in all_pages(read_record(Path())).items():
        (folder / file).write_text(text, encoding="utf-8")
