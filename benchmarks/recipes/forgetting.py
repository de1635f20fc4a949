"""Does a recipe forget less than plain training? `python -m benchmarks.recipes.forgetting benchmarks/results/recipes/forgetting.json`.

For each of ten seeds a network learns the first task of the toy, and is then trained on the second by every recipe at its
default settings. 200 old examples are at hand. What is written holds each seed's accuracies, the differences to plain training
of the same seed with 95 % intervals (Student's t over the seeds), and the cost.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from benchmarks.recipes import toy
from benchmarks.shared.arguments import script_parser
from deltamend.machine.threads import one_thread_each
from deltamend.recipes.registry import RECIPES, get_recipe

SEEDS = range(10)
OLD, NEW, TEST, BASE_STEPS = 200, 600, 1000, 400


def one_seed(seed: int) -> dict[str, dict[str, float]]:
    """Accuracies and cost of every recipe, by its name; "base" has only the accuracies."""
    old, old_test = toy.task(seed, 3000, permuted=False), toy.task(seed, TEST, permuted=False)
    new, new_test = toy.task(seed, NEW, permuted=True), toy.task(seed, TEST + 1, permuted=True)
    base = toy.network(seed)
    toy.train(toy.run_of(base, [], seed=seed, steps=BASE_STEPS), get_recipe("plain"), old)
    found = {"base": {"old": toy.accuracy(base, old_test), "new": toy.accuracy(base, new_test)}}
    size = sum(one.numel() for one in base.parameters())
    for recipe in RECIPES:
        made = get_recipe(recipe.name)
        torch.manual_seed(seed)  # of an adapter's first weights
        model = toy.with_adapter(copy.deepcopy(base), made.adapter)
        started = time.process_time()
        running = toy.train(toy.run_of(model, old[:OLD], seed=seed), made, new)
        found[recipe.name] = {
            "old": toy.accuracy(model, old_test),
            "new": toy.accuracy(model, new_test),
            "seconds": time.process_time() - started,
            "held": sum(one.numel() for one in running.held()) / size,
        }
    return found


def interval(values: list[float]) -> list[float]:
    """Mean, and both ends of its 95 % interval over the seeds."""
    mean = statistics.fmean(values)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return [round(float(one), 4) for one in (mean, mean - half, mean + half)]


def summary(seeds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """What is said of every recipe: its accuracies, its differences to plain training, and its cost beside it."""
    rows: dict[str, dict[str, Any]] = {}
    for name in seeds[0]:
        row: dict[str, Any] = {what: interval([seed[name][what] for seed in seeds]) for what in ("old", "new")}
        if name not in ("base", "plain"):
            for what in ("old", "new"):
                row[f"{what}_beside_plain"] = interval([seed[name][what] - seed["plain"][what] for seed in seeds])
            row["time"] = round(
                statistics.median(seed[name]["seconds"] / seed["plain"]["seconds"] for seed in seeds), 1
            )
            row["held"] = round(statistics.fmean(seed[name]["held"] for seed in seeds), 1)
        rows[name] = row
    return rows


def main() -> None:
    """Run all seeds, and write the record."""
    asked = script_parser(__doc__)
    asked.add_argument("out", type=Path, help="the JSON file to write")
    out = asked.parse_args().out
    seeds = []
    with one_thread_each():
        for seed in SEEDS:
            seeds.append(one_seed(seed))
            print(f"seed {seed} done", file=sys.stderr, flush=True)
    record = {"steps": toy.STEPS, "batch": toy.BATCH, "old_examples": OLD, "summary": summary(seeds), "seeds": seeds}
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
