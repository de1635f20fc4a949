"""How often the intervals of `deltamend score` hold the truth, in simulated studies.

    python -m benchmarks.score.coverage [--studies 1000] [--draws 1000] [--only NAME …] [--out FILE]

A study has nine benchmarks and a target, and a base, a fine-tuned and two repaired models. Every benchmark is a
population of 5,000 items that a model gets right or wrong; the models' answers to an item are correlated. A study
draws its items from these populations. The truth is the metric of the populations themselves: their means, parted into
damaged, improved and neutral benchmarks by the margin that a study of so many items has (the standard deviation of f −
b over the population, divided by √n). Where that parts them otherwise than the study does, the study's own groups are
used. A part of the score that is undefined in the population or in the study is not counted for that study; "of 1000"
says how many were.

The studies named "spread" draw the true change of every benchmark from N(−0.05, 0.08²), which is about what
fine-tuning does. The others have what is hard for an interval: changes of exactly zero, a repair at the edge of the
scale, few items.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

from benchmarks.shared.arguments import script_parser
from deltamend.scoring.bootstrap import percentile_interval
from deltamend.scoring.cell_means import draw_cells, means_of, observed_means
from deltamend.scoring.metric import FloatArray, Means, parts_of
from deltamend.scoring.paired_cell import PairedCell
from deltamend.scoring.paired_items import PairedTask
from deltamend.scoring.settings import Settings, make_settings

POPULATION = 5_000
BENCHMARKS = 9
FIGURES = ("healing", "preservation", "non_damage", "retention", "combined")
NOMINAL = 0.95
SLACK = 1e-9

Random = np.random.Generator
Rates = tuple[FloatArray, FloatArray, FloatArray]
"""Of each benchmark: base (B,), fine-tuned (B,), repaired (2, B)."""


@dataclass(frozen=True)
class Scenario:
    """Studies of one kind."""

    rates: Callable[[Random], Rates]
    items: int = 400
    benchmarks: int = BENCHMARKS
    margin: str = "1se"
    compared: bool = False
    """Whether BC and BCa intervals are made as well."""


def spread(random: Random) -> Rates:
    """Changes drawn from a smooth law; each repair undoes some share of each, plus or minus a point or two."""
    base = random.uniform(0.35, 0.75, BENCHMARKS)
    finetuned = np.clip(base + random.normal(-0.05, 0.08, BENCHMARKS), 0.05, 0.95)
    undone = random.uniform(0, 1, (2, BENCHMARKS))
    noise = random.normal(0, 0.015, (2, BENCHMARKS))
    return base, finetuned, np.clip(undone * base + (1 - undone) * finetuned + noise, 0.02, 0.98)


def untouched(random: Random) -> Rates:
    """Five of nine benchmarks are not changed at all, by anything."""
    base = random.uniform(0.35, 0.75, BENCHMARKS)
    finetuned = base + np.array([-0.2, -0.15, -0.1, 0.08, 0, 0, 0, 0, 0])
    undone = random.uniform(0, 1, (2, BENCHMARKS))
    return base, finetuned, undone * base + (1 - undone) * finetuned


def untouched_but_hurt(random: Random) -> Rates:
    """Three of nine are not changed by fine-tuning and lose six points by the repair: the worst case for a partition."""
    base = random.uniform(0.4, 0.7, BENCHMARKS)
    finetuned = base + np.array([-0.25, -0.2, -0.15, -0.18, 0.15, 0.12, 0, 0, 0])
    undone = np.array([[0.3, 0.5, 0.6, 0.7, 0.4, 0.5, 0, 0, 0], [0.2, 0.4, 0.5, 0.6, 0.3, 0.4, 0, 0, 0]])
    repaired = undone * base + (1 - undone) * finetuned
    repaired[:, 6:] -= 0.06
    return base, finetuned, repaired


def fully_healed(random: Random) -> Rates:
    """The first repair is as good as the better of base and fine-tuned everywhere: every part is truly 1."""
    base, finetuned, repaired = spread(random)
    repaired[0] = np.maximum(base, finetuned)
    return base, finetuned, repaired


SCENARIOS = {
    "spread": Scenario(spread, compared=True),
    "spread, margin 2se": Scenario(spread, margin="2se"),
    "spread, margin 0.03": Scenario(spread, margin="0.03"),
    "untouched": Scenario(untouched),
    "untouched, margin 2se": Scenario(untouched, margin="2se"),
    "untouched but hurt": Scenario(untouched_but_hurt, compared=True),
    "untouched but hurt, margin 2se": Scenario(untouched_but_hurt, margin="2se"),
    "fully healed": Scenario(fully_healed),
    "spread, 100 items": Scenario(spread, items=100),
    "spread, 4 benchmarks of 40 items": Scenario(spread, items=40, benchmarks=4),
    "spread, 1000 items": Scenario(spread, items=1000),
}


def population(rates: FloatArray, random: Random) -> FloatArray:
    """(POPULATION, M) answers of M models that are right at `rates`; hard items are hard for all."""
    shared = math.sqrt(0.6) * random.standard_normal((POPULATION, 1))
    own = math.sqrt(0.4) * random.standard_normal((POPULATION, len(rates)))
    answers: FloatArray = (shared + own < norm.ppf(rates)).astype(np.float64)
    return answers


def columns(scores: FloatArray) -> FloatArray:
    """Mean of every model and of (f − b)², (M + 1,)."""
    means: FloatArray = np.column_stack([scores, (scores[:, 1] - scores[:, 0]) ** 2]).mean(axis=0)
    return means


def study(scenario: Scenario, random: Random) -> tuple[dict[str, FloatArray], PairedCell]:
    """Populations by task, and a study of them."""
    base, finetuned, repaired = scenario.rates(random)
    rates = np.vstack([base, finetuned, repaired]).T[: scenario.benchmarks]
    target = np.array([0.2, 0.7, *random.uniform(0.3, 0.7, 2)])
    populations = {f"task {index}": population(own, random) for index, own in enumerate(rates)}
    populations["target"] = population(target, random)
    ids = tuple(str(number) for number in range(scenario.items))
    tasks = [
        PairedTask(name, "acc", None, None, ids, all_[random.integers(POPULATION, size=scenario.items)])
        for name, all_ in populations.items()
    ]
    models = {name: name for name in ("base", "finetuned", "one", "other")}
    return populations, PairedCell("study", models, tasks[-1], tuple(tasks[:-1]), ())


def figures(means: Means, like: Means | None = None) -> dict[str, FloatArray]:
    """Every figure of the first repair, and both repairs' difference in three of them; see `parts_of` for `like`."""
    parts = parts_of(means, like)
    found = {name: getattr(parts, name)[..., 0] for name in FIGURES}
    for name in ("healing", "retention", "combined"):
        found[f"Δ {name}"] = getattr(parts, name)[..., 0] - getattr(parts, name)[..., 1]
    return found


def acceleration(cell: PairedCell, settings: Settings, seen: dict[str, FloatArray]) -> dict[str, float]:
    """BCa's acceleration from the jackknife over the items of every task (Davison & Hinkley 1997, eq. 5.23)."""
    cubes, squares = dict.fromkeys(seen, 0.0), dict.fromkeys(seen, 0.0)
    whole = {task.name: columns(task.scores) for task in cell.tasks}
    for task in cell.tasks:
        items = len(task.ids)
        rows, times = np.unique(task.scores, axis=0, return_counts=True)
        one = np.column_stack([rows, (rows[:, 1] - rows[:, 0]) ** 2])
        without = {name: np.broadcast_to(means, one.shape) for name, means in whole.items()}
        without[task.name] = (items * whole[task.name] - one) / (items - 1)
        for name, values in figures(means_of(cell, settings, without)).items():
            influence = np.nan_to_num((items - 1) / items * (seen[name] - values))
            cubes[name] += float((times * influence**3).sum())
            squares[name] += float((times * influence**2).sum())
    return {name: cubes[name] / (6 * squares[name] ** 1.5) if squares[name] > 1e-20 else 0.0 for name in seen}


def bca(draws: FloatArray, seen: float, acceleration_: float) -> tuple[float, float]:
    """BCa interval (Efron 1987); BC where the acceleration is 0. Draws equal to the estimate count half."""
    below = (draws < seen - SLACK).mean() + (np.abs(draws - seen) <= SLACK).mean() / 2
    shift = norm.ppf(np.clip(below, 0.5 / draws.size, 1 - 0.5 / draws.size))
    tails = shift + norm.ppf([(1 - NOMINAL) / 2, (1 + NOMINAL) / 2])
    low, high = np.quantile(draws, norm.cdf(shift + tails / (1 - acceleration_ * tails)))
    return float(low), float(high)


def run(scenario: Scenario, *, studies: int, draws: int, seed: int) -> dict[str, dict[str, list[tuple[bool, float]]]]:
    """Kind of interval, then figure, to whether each study's interval held the truth, and how wide it was."""
    settings = make_settings(margin=scenario.margin, draws=draws)
    found: dict[str, dict[str, list[tuple[bool, float]]]] = {"percentile": {}}
    if scenario.compared:
        found |= {"BC": {}, "BCa": {}}
    for number in range(studies):
        random = np.random.default_rng([seed, number])
        populations, cell = study(scenario, random)
        # The margin of the rule is a standard error with the study's number of items, of the population's spread.
        observed = observed_means(cell, settings)
        truth, seen = figures(population_means(cell, settings, populations), observed), figures(observed)
        _, (drawn,) = draw_cells([cell], make_settings(margin=scenario.margin, draws=draws, seed=number))
        bent = acceleration(cell, settings, seen) if scenario.compared else {}
        for name, values in figures(drawn, observed).items():
            defined = values[~np.isnan(values)]
            if np.isnan(truth[name]) or np.isnan(seen[name]) or defined.size < draws / 2:
                continue
            percentile = percentile_interval(defined, NOMINAL)
            intervals = {"percentile": (percentile.low, percentile.high)}
            if scenario.compared:
                intervals["BC"] = bca(defined, float(seen[name]), 0.0)
                intervals["BCa"] = bca(defined, float(seen[name]), bent[name])
            for kind, (low, high) in intervals.items():
                held = low - SLACK <= truth[name] <= high + SLACK
                found[kind].setdefault(name, []).append((bool(held), high - low))
    return found


def population_means(cell: PairedCell, settings: Settings, populations: dict[str, FloatArray]) -> Means:
    """Means of the populations, with the margins that a study of this size has."""
    return means_of(cell, settings, {name: columns(scores) for name, scores in populations.items()})


def main() -> None:
    """Print one Markdown table a kind of interval."""
    parser = script_parser(__doc__)
    parser.add_argument("--studies", type=int, default=1000, help="number of simulated studies of each kind")
    parser.add_argument("--draws", type=int, default=1000, help="number of bootstrap resamples")
    parser.add_argument("--only", nargs="*", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--out", type=Path, default=None, help="write the tables here as well")
    arguments = parser.parse_args()
    started = time.perf_counter()
    names = (*FIGURES, "Δ healing", "Δ retention", "Δ combined")
    tables: dict[str, list[str]] = {}
    for name in arguments.only:
        found = run(SCENARIOS[name], studies=arguments.studies, draws=arguments.draws, seed=0)
        for kind, by_figure in found.items():
            cells = [coverage(by_figure.get(figure, []), arguments.studies) for figure in names]
            tables.setdefault(kind, []).append(f"| {name} | {' | '.join(cells)} |")
            print(kind, tables[kind][-1], f"{time.perf_counter() - started:.0f} s", flush=True)
    head = [f"| studies | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    text = "\n\n".join("\n".join([f"### {kind} intervals", "", *head, *rows]) for kind, rows in tables.items())
    about = (
        f"{arguments.studies} studies a line, {arguments.draws} draws a study; coverage in %, mean width in brackets."
    )
    result = f"{about}\n\n{text}\n"
    print(result)
    if arguments.out is not None:
        arguments.out.write_text(result)


def coverage(studies: list[tuple[bool, float]], planned: int) -> str:
    """Coverage and mean width as text; how many studies counted, where some did not."""
    if not studies:
        return "–"
    held, width = np.mean([held for held, _ in studies]), np.mean([width for _, width in studies])
    return f"{100 * held:.1f} ({width:.2g})" + (f" of {len(studies)}" if len(studies) < planned else "")


if __name__ == "__main__":
    main()
