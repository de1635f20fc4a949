"""How far the default of null-space leads in a study, and what the lead hangs on.

python -m benchmarks.study.lead studies/smollm2.yaml docs/results/smollm2 --record benchmarks/results/study/lead.txt
python -m benchmarks.study.lead studies/fresh.yaml docs/results/fresh --with studies/smollm2.yaml docs/results/smollm2 --record benchmarks/results/study/lead_fresh.txt

All of it is over confirmation cells: in float32, and as `deltamend repair` writes it, in the fine-tuned model's dtype; by regime
and by target; against WiSE-FT at the alpha that was best in the choosing cells of a regime; with retention measured otherwise;
without the cluster in which the lead is largest; and over the cells that ran after the default was set. Their seeds, that is the
fine-tuned models, are new, while targets, regimes and the items of the exam had all been seen. With another study, over both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from deltamend.scoring.cells import OverCells, cluster_means, over_cells
from deltamend.scoring.metric import FloatArray
from deltamend.scoring.result import Estimate
from deltamend.scoring.scored import make_settings
from deltamend.study.config import Study, read_study
from deltamend.study.findings.scored_cells import ReadCell, Sample, read_cells, sample

DEFAULT, CURVE, PAPER = "null-space-0.001", "wise-ft-0.5", "dg-hard"
OTHERS = (
    "null-space",
    "null-space-half",
    "magnitude-0.15",
    "fapm",
    "ties",
    "dare",
    "intruder",
    "dg-hard",
    "dg-hard-bf16",
)
HALF = "null-space-half"
PUBLISHED = (CURVE, PAPER, "ties", "dare", "fapm", "intruder")
ALPHAS = (0.2, 0.35, 0.5, 0.65, 0.8)
CHOSEN = {"fp32": 0.35, "bf16": 0.65, "fp32-low": 0.35, "bf16-low": 0.8}
"""Regime to WiSE-FT's best alpha in the choosing cells of studies/smollm2.yaml; checked where these cells are there."""
SEEN = {  # confirmation cells of smollm2 scored when the default was set, commit f658470
    *((target, regime, 0) for target in ("gsm8k", "pubmedqa") for regime in ("fp32", "bf16", "fp32-low", "bf16-low")),
    *(("wikisql", regime, 1) for regime in ("fp32", "bf16", "fp32-low", "bf16-low")),
    *(("sums", regime, 1) for regime in ("fp32", "bf16")),
}
Figures = tuple[FloatArray, FloatArray]
"""(n,) values of some cells and their (D, n) draws."""


class Lead:
    """Figures of a study's cells, and differences of them."""

    def __init__(self, study: Study, out: Path, draws: int) -> None:
        read, _ = read_cells(study, out)
        self.sample, self.other = sample(study, read, make_settings(draws=draws))
        self.cells: Sequence[ReadCell] = read
        self.confirming = [row for row, of in enumerate(read) if not study.chooses(of.cell)]
        self.choosing = [row for row, of in enumerate(read) if study.chooses(of.cell)]

    def of(self, name: str, rows: Sequence[int], by: Sample | None = None) -> Figures:
        """Combined scores of one repair."""
        return (by or self.sample).at("combined", name, rows)

    def picked(self, names: Sequence[str], rows: Sequence[int]) -> Figures:
        """Combined scores of another repair in each cell."""
        each = [self.of(name, [row]) for name, row in zip(names, rows, strict=True)]
        return np.concatenate([values for values, _ in each]), np.concatenate([draws for _, draws in each], axis=1)

    def written(self, name: str, rows: Sequence[int]) -> Figures:
        """Combined scores of a repair in the dtype of the fine-tuned model, where it was written so; else in float32."""
        there = f"{name}-bf16" in self.sample.names
        bf16 = [there and self.cells[row].cell.regime.weights == "bfloat16" for row in rows]
        return self.picked([f"{name}-bf16" if own else name for own in bf16], rows)

    def measured(self, name: str, rows: Sequence[int], retention: str) -> Figures:
        """Combined scores with retention measured in one way on every target."""
        each = [self.sample if self.cells[row].cell.target.retention == retention else self.other for row in rows]
        found = [self.of(name, [row], by) for row, by in zip(rows, each, strict=True)]
        return np.concatenate([values for values, _ in found]), np.concatenate([draws for _, draws in found], axis=1)

    def mean(self, figures: Figures, rows: Sequence[int]) -> OverCells:
        """Over clusters."""
        return self.sample.mean(*figures, rows)

    def clusters(self, rows: Sequence[int]) -> list[str]:
        """Of some cells."""
        return [self.sample.clusters[row] for row in rows]

    def regimes(self) -> list[str]:
        """Of the confirmation cells, in their order."""
        return list(dict.fromkeys(self.cells[row].cell.regime.name for row in self.confirming))


def minus(first: Figures, second: Figures) -> Figures:
    """A paired difference."""
    return first[0] - second[0], first[1] - second[1]


def told(found: OverCells) -> str:
    """A mean over clusters with both of its intervals."""
    these, like = found.these_cells, found.cells_like_these
    return f"{these.value:.1f} in {found.cells} cells, {span(these)}, for cells like these {span(like)}"


def span(of: Estimate) -> str:
    """An interval of 95 %."""
    return "no interval" if of.low is None else f"[{of.low:.1f}, {of.high:.1f}]"


def leads(of: Lead, rows: Sequence[int], names: Sequence[str]) -> Iterator[str]:
    """The default minus each of some repairs, in float32."""
    for name in names:
        yield f"  {DEFAULT} − {name}: {told(of.mean(minus(of.of(DEFAULT, rows), of.of(name, rows)), rows))}"


def as_written(of: Lead, rows: Sequence[int]) -> Iterator[str]:
    """Scores and the lead in the dtype of the fine-tuned model."""
    for name in (DEFAULT, CURVE, PAPER):
        yield f"  {name}: {told(of.mean(of.written(name, rows), rows))}"
    for name in (CURVE, PAPER):
        gap = minus(of.written(DEFAULT, rows), of.written(name, rows))
        yield f"  {DEFAULT} − {name}: {told(of.mean(gap, rows))}"


def over_both(
    first: Lead, second: Lead, figures: tuple[Figures, Figures], rows: tuple[list[int], list[int]]
) -> OverCells:
    """Mean over the clusters of two studies, whose items were drawn independently."""
    return over_cells(
        np.concatenate([values for values, _ in figures]),
        np.concatenate([draws for _, draws in figures], axis=1),
        [*first.clusters(rows[0]), *second.clusters(rows[1])],
        first.sample.settings,
    )


def pooled(first: Lead, second: Lead) -> Iterator[str]:
    """Scores and leads over the confirmation cells of two studies."""
    studies = (first, second)

    def lines_of(rows: tuple[list[int], list[int]], written: bool, names: Sequence[str]) -> Iterator[str]:
        def of(name: str) -> tuple[Figures, Figures]:
            found = [
                one.written(name, own) if written else one.of(name, own) for one, own in zip(studies, rows, strict=True)
            ]
            return found[0], found[1]

        for name in names:
            yield f"  {name}: {told(over_both(first, second, of(name), rows))}"
        for name in names[1:]:
            gaps = [minus(ours, theirs) for ours, theirs in zip(of(DEFAULT), of(name), strict=True)]
            yield f"  {DEFAULT} − {name}: {told(over_both(first, second, (gaps[0], gaps[1]), rows))}"

    rows = (first.confirming, second.confirming)
    clusters = len({*first.clusters(rows[0]), *second.clusters(rows[1])})
    yield f"all {len(rows[0]) + len(rows[1])} confirmation cells of both studies, of {clusters} clusters, in float32"
    yield from lines_of(rows, False, (DEFAULT, CURVE, "wise-ft-0.65", PAPER, "ties", "fapm"))
    yield f"{HALF}, over the cells that had not been seen when it was picked, in float32"
    for name in PUBLISHED:
        gaps = [minus(one.of(HALF, own), one.of(name, own)) for one, own in zip(studies, rows, strict=True)]
        yield f"  {HALF} − {name}: {told(over_both(first, second, (gaps[0], gaps[1]), rows))}"
    gaps = [minus(one.of(HALF, own), one.written(PAPER, own)) for one, own in zip(studies, rows, strict=True)]
    yield f"  {HALF} − {PAPER} in the dtype of the fine-tuned model: {told(over_both(first, second, (gaps[0], gaps[1]), rows))}"
    yield "the same in the dtype of the fine-tuned model"
    yield from lines_of(rows, True, (DEFAULT, CURVE, PAPER, "ties", "fapm"))
    for regime in first.regimes():
        own = [[row for row in one.confirming if one.cells[row].cell.regime.name == regime] for one in studies]
        yield f"in both studies in {regime}, in the dtype of the fine-tuned model"
        yield from lines_of((own[0], own[1]), True, (DEFAULT, CURVE, PAPER, "ties", "fapm"))


def best_alphas(of: Lead) -> dict[str, float]:
    """Regime to the alpha with the highest mean combined score over its choosing cells.

    Raises:
        SystemExit: it is another one than CHOSEN says.
    """
    found = {}
    for regime in of.regimes():
        rows = [row for row in of.choosing if of.cells[row].cell.regime.name == regime]
        if not rows:
            return CHOSEN
        means = {alpha: float(of.of(f"wise-ft-{alpha}", rows)[0].mean()) for alpha in ALPHAS}
        found[regime] = max(means, key=lambda alpha: means[alpha])
    if found != CHOSEN:
        raise SystemExit(f"the best alphas of the choosing cells are {found}, not {CHOSEN}: mend CHOSEN")
    return found


def by_measure(of: Lead, rows: Sequence[int]) -> Iterator[str]:
    """The lead over WiSE-FT at 0.5 with retention measured in one way."""
    for retention, words in (("exact_match", "right answers"), ("likelihood", "their likelihood")):
        gap = minus(*(of.measured(name, rows, retention) for name in (DEFAULT, CURVE)))
        yield f"  {words}: {told(of.mean(gap, rows))}"


def without_largest(of: Lead, rows: Sequence[int]) -> Iterator[str]:
    """The lead without the cluster in which it is largest."""
    values, _ = minus(of.of(DEFAULT, rows), of.of(CURVE, rows))
    by_cluster = cluster_means(values, of.clusters(rows))
    largest = max(by_cluster, key=lambda name: by_cluster[name])
    others = [row for row in rows if of.sample.clusters[row] != largest]
    ahead = sum(value > 0 for value in by_cluster.values())
    yield f"without {largest}, where the lead over {CURVE} is {by_cluster[largest]:.1f}; it is ahead in {ahead} of {len(by_cluster)} clusters"
    yield from leads(of, others, [CURVE])


def lines(of: Lead) -> Iterator[str]:
    """What the script prints of one study."""
    rows = of.confirming
    there = [name for name in OTHERS if name in of.sample.names]
    gap = minus(of.of(DEFAULT, rows), of.of(CURVE, rows))

    def some(condition: Sequence[bool], figures: Figures = gap) -> OverCells:
        places = [place for place, true in enumerate(condition) if true]
        return of.mean((figures[0][places], figures[1][:, places]), [rows[place] for place in places])

    yield f"all {len(rows)} confirmation cells of {len(set(of.clusters(rows)))} clusters, in float32"
    yield from (f"  {name}: {told(of.mean(of.of(name, rows), rows))}" for name in (DEFAULT, CURVE))
    yield from leads(of, rows, (CURVE, *there))
    yield "in the dtype of the fine-tuned model, as `deltamend repair` writes it unless it is told"
    yield from as_written(of, rows)
    for regime in of.regimes():
        own = [row for row in rows if of.cells[row].cell.regime.name == regime]
        yield f"the same in {regime}"
        yield from as_written(of, own)
    yield f"the lead over {CURVE} in float32, by target"
    for target in dict.fromkeys(of.cells[row].cell.target.name for row in rows):
        yield f"  {target}: {told(some([of.cells[row].cell.target.name == target for row in rows]))}"
    alphas = best_alphas(of)
    chosen = of.picked([f"wise-ft-{alphas[of.cells[row].cell.regime.name]}" for row in rows], rows)
    listed = ", ".join(f"{alpha} in {regime}" for regime, alpha in alphas.items())
    yield f"WiSE-FT at the alpha that was best in the choosing cells of a regime ({listed}), in float32"
    yield f"  {told(of.mean(chosen, rows))}"
    yield f"  {DEFAULT} − that: {told(of.mean(minus(of.of(DEFAULT, rows), chosen), rows))}"
    yield f"the lead over {CURVE} in float32 with retention measured on every target by"
    yield from by_measure(of, rows)
    yield from without_largest(of, rows)
    cells = [of.cells[row].cell for row in rows]
    fresh = [(cell.target.name, cell.regime.name, cell.seed) not in SEEN for cell in cells]
    own = [row for row, new in zip(rows, fresh, strict=True) if new]
    if len(own) < len(rows):
        yield f"{len(own)} confirmation cells of {len(set(of.clusters(own)))} clusters, all of them seen with other seeds, ran after the default of null-space was set; in float32"
        yield from (f"  {name}: {told(of.mean(of.of(name, own), own))}" for name in (DEFAULT, CURVE, *there))
        yield from leads(of, own, (CURVE, *there))
        yield "the same as `deltamend repair` writes it"
        yield from as_written(of, own)
        cpu = [row for row in own if "NVIDIA" not in of.cells[row].record.machine]
        yield f"the same in float32, without the {len(own) - len(cpu)} cells that ran on a GPU, all of seed 2"
        yield from leads(of, cpu, [CURVE])


def main() -> None:
    """Compute and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="its YAML file")
    parser.add_argument("out", type=Path, help="its folder")
    parser.add_argument("--draws", type=int, default=10_000, help="of the bootstrap")
    parser.add_argument(
        "--with", dest="other", nargs=2, type=Path, help="another study's file and folder, to pool with"
    )
    parser.add_argument("--record", type=Path, required=True, help="where to write")
    arguments = parser.parse_args()
    of = Lead(read_study(arguments.study), arguments.out, arguments.draws)
    told_of = list(lines(of))
    if arguments.other is not None:
        file, folder = arguments.other
        told_of += pooled(Lead(read_study(file), folder, arguments.draws), of)
    text = "\n".join(told_of) + "\n"
    print(text, end="")
    arguments.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
