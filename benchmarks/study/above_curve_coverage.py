"""How often the intervals of the primary measure hold the truth, in simulated studies whose truth is known.

python -m benchmarks.study.above_curve_coverage --record benchmarks/results/study/above_curve_coverage.txt

A simulated study has one fine-tuned model for each of some targets, four held-out benchmarks whose items all models share, and
a target with items of its own. What each item loses by fine-tuning, and how much of that each repair gives back, varies from
item to item: partly in the same way for all targets, as an item that is easily lost is easily lost everywhere. Targets differ in
what the repair truly does. The truth is the mean height above the WiSE-FT curve over all targets that could have been drawn, at
the means of the populations. The figures are computed by the package's own functions, from the scores of single items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.shared.arguments import script_parser
from deltamend.machine.atomic import write_whole
from deltamend.scoring.bootstrap import resampled_means, standard_error
from deltamend.scoring.metric import FloatArray
from deltamend.study.findings.above_curve import INTERPOLATIONS, healing, height_above_curve, retention
from deltamend.study.findings.clustered_t import clustered_mean

ALPHAS = np.array([0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0])
DRAWS = 200
LEAST = 0.01


@dataclass(frozen=True)
class Scenario:
    """One kind of study.

    Attributes:
        name: in the table.
        targets: fine-tuned models, one for each.
        items: of each benchmark, and of the target.
        losses: what fine-tuning costs on each benchmark, on average.
        spread: standard deviation, over targets, of the repair's true healing and retention.
        shared: share of the variance between items that is the same for all targets.
    """

    name: str
    targets: int = 5
    items: int = 48
    losses: tuple[float, ...] = (0.2, 0.12, 0.3, 0.06)
    spread: float = 0.08
    shared: float = 0.5


SCENARIOS = (
    Scenario("five targets"),
    Scenario("five targets, alike", spread=0.0),
    Scenario("five targets, unlike", spread=0.2),
    Scenario("three targets", targets=3),
    Scenario("twelve targets", targets=12),
    Scenario("nothing shared", shared=0.0),
    Scenario("nearly all shared, alike", shared=0.9, spread=0.0),
    Scenario("200 items", items=200),
)


@dataclass
class Held:
    """Counts of one scenario by interpolation."""

    held: dict[str, int] = field(default_factory=lambda: dict.fromkeys(INTERPOLATIONS, 0))
    width: dict[str, float] = field(default_factory=lambda: dict.fromkeys(INTERPOLATIONS, 0.0))


def curve(alphas: FloatArray) -> tuple[FloatArray, FloatArray]:
    """True retention and healing of WiSE-FT."""
    return 1.0 - (1.0 - alphas) ** 2.2, 1.0 - alphas**1.6


def truths(scenario: Scenario, random: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """True (R, H) of the repair on `count` targets."""
    retained = 0.6 + scenario.spread * random.normal(size=count)
    healed = 0.8 + scenario.spread * random.normal(size=count)
    return retained, healed


def true_mean(scenario: Scenario) -> dict[str, float]:
    """The mean height over many targets, from the populations' means."""
    retained, healed = truths(scenario, np.random.default_rng(1), 20_000)
    of_curve = curve(ALPHAS)
    points = tuple(np.broadcast_to(one, (1, ALPHAS.size)) for one in of_curve)
    return {
        by: float(height_above_curve(ALPHAS, (points[0], points[1]), (retained[None], healed[None]), by).mean())
        for by in INTERPOLATIONS
    }


def simulated(scenario: Scenario, random: np.random.Generator) -> dict[str, tuple[float, float, float]]:
    """(value, low, high) of one study by interpolation."""
    retained, healed = truths(scenario, random, scenario.targets)
    curve_retained, curve_healed = curve(ALPHAS)
    names = [f"t{place}" for place in range(scenario.targets)]
    given_back = np.stack([np.append(curve_healed, one) for one in healed])  # (T, M): curve, then the repair
    kept = np.stack([np.append(curve_retained, one) for one in retained])
    lost, mean_square = [], []
    columns = []
    for loss in scenario.losses:
        scores = _items(scenario, random, loss, given_back, together=True)
        columns.append(scores)
        change = scores[:, :, 1] - scores[:, :, 0]
        lost.append(-change.mean(axis=0))
        mean_square.append((change**2).mean(axis=0))
    error = standard_error(np.stack(lost), np.stack(mean_square), scenario.items)
    damaged = np.stack(lost) > np.maximum(2.0 * error, LEAST)  # (B, T)
    targets = [_items(scenario, random, -0.5, 1.0 - kept[[place]], together=False) for place in range(scenario.targets)]
    seen = _heights([one.mean(axis=0)[None] for one in columns], [one.mean(axis=0)[None] for one in targets], damaged)
    drawn = _heights(
        [_resampled(one, f"benchmark {at}") for at, one in enumerate(columns)],
        [_resampled(one, names[at]) for at, one in enumerate(targets)],
        damaged,
    )
    found: dict[str, tuple[float, float, float]] = {}
    for by in INTERPOLATIONS:
        mean = clustered_mean(seen[by][0], drawn[by], names, 0.95, items=scenario.items)
        if mean is not None and mean.low is not None and mean.high is not None:
            found[by] = (mean.value, mean.low, mean.high)
    return found


def _items(
    scenario: Scenario, random: np.random.Generator, loss: float, shares: FloatArray, *, together: bool
) -> FloatArray:
    """(n, T, 2 + M) scores of base, fine-tuned and other models; `shares` is (T, M), what each gives back of the loss."""
    count, models = shares.shape
    items = scenario.items
    shared = scenario.shared if together else 0.0

    def varied(*more: int) -> FloatArray:
        common = random.normal(size=(items, 1, *more))
        own = random.normal(size=(items, count, *more))
        return np.asarray(np.sqrt(shared) * common + np.sqrt(1.0 - shared) * own)

    base = 0.6 + 0.1 * varied()
    losses = loss * (1.0 + 0.7 * varied())
    # Models of one curve lie close together; what a model gives back of single items varies with it.
    of_curve, of_model = varied(), varied(models)
    bend = 4.0 * shares * (1.0 - shares)
    given = shares[None] + bend[None] * (0.25 * of_curve[..., None] + 0.1 * of_model)
    tuned = base - losses
    return np.concatenate([base[..., None], tuned[..., None], tuned[..., None] + given * losses[..., None]], axis=-1)


def _resampled(scores: FloatArray, key: str) -> FloatArray:
    items = scores.shape[0]
    found = resampled_means(scores.reshape(items, -1), draws=DRAWS, seed=0, key=key)
    return found.reshape(DRAWS, *scores.shape[1:])


def _heights(
    benchmarks: Sequence[FloatArray], targets: Sequence[FloatArray], damaged: FloatArray
) -> dict[str, FloatArray]:
    """Height of the repair above the curve, (D, T), from means (D, T, 2 + M) of each benchmark and (D, 1, 2 + M) of each target."""
    heights: dict[str, list[FloatArray]] = {by: [] for by in INTERPOLATIONS}
    for place, target in enumerate(targets):
        own = [one[:, place] for at, one in enumerate(benchmarks) if damaged[at, place]]
        base, tuned, others = (
            np.stack([one[:, part] for one in own], axis=-1) if own else np.empty((len(target), 0))
            for part in (0, 1, slice(2, None))
        )
        healed = healing(base, tuned, np.asarray(others).reshape(len(target), -1, len(own)))
        kept = retention(target[:, 0, 0], target[:, 0, 1], target[:, 0, 2:])
        for by in INTERPOLATIONS:
            at_curve = kept[:, :-1], healed[:, :-1]
            heights[by].append(height_above_curve(ALPHAS, at_curve, (kept[:, -1:], healed[:, -1:]), by)[:, 0])
    return {by: np.stack(own, axis=-1) for by, own in heights.items()}


def table(studies: int) -> str:
    """The share of studies whose interval holds the truth, and the mean width, by scenario."""
    lines = [
        f"{studies} simulated studies a line, {DRAWS} draws of the items in each; 95 % intervals",
        f"{'studies':<28}{'truth':>8}" + "".join(f"{f'{by}: held':>18}{'width':>8}" for by in INTERPOLATIONS),
    ]
    for scenario in SCENARIOS:
        truth = true_mean(scenario)
        random = np.random.default_rng(7)
        counts = Held()
        for _ in range(studies):
            for by, (_, low, high) in simulated(scenario, random).items():
                counts.held[by] += low <= truth[by] <= high
                counts.width[by] += high - low
        cells = "".join(
            f"{100 * counts.held[by] / studies:>17.1f}%{counts.width[by] / studies:>8.3f}" for by in INTERPOLATIONS
        )
        lines.append(f"{scenario.name:<28}{truth['straight']:>8.3f}{cells}")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate, print and record."""
    parser = script_parser(__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--record", type=Path, help="Text file of the table.")
    given = parser.parse_args()
    text = table(given.studies)
    if given.record is not None:
        write_whole(given.record, text)


if __name__ == "__main__":
    main()
