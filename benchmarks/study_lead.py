"""How far the default of null-space leads in studies/smollm2.yaml: over all confirmation cells, and over some.

python benchmarks/study_lead.py docs/results/smollm2 --record benchmarks/study_lead.txt

Over those that ran after the default was set: their seeds, that is the fine-tuned models, are new, while targets, regimes and
the items of the exam had all been seen. And over all but the one cluster in which the lead is largest.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from deltamend.score.cells import OverCells, cluster_means
from deltamend.score.result import Estimate
from deltamend.score.scoring import make_settings
from deltamend.study.config import read_study
from deltamend.study.findings.scored_cells import read_cells, sample

STUDY = Path(__file__).parents[1] / "studies/smollm2.yaml"
DEFAULT, CURVE = "null-space-0.001", "wise-ft-0.5"
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
SEEN = {  # confirmation cells scored when the default was set, commit f658470
    *((target, regime, 0) for target in ("gsm8k", "pubmedqa") for regime in ("fp32", "bf16", "fp32-low", "bf16-low")),
    *(("wikisql", regime, 1) for regime in ("fp32", "bf16", "fp32-low", "bf16-low")),
    *(("sums", regime, 1) for regime in ("fp32", "bf16")),
}


def told(found: OverCells) -> str:
    """A mean over clusters with both of its intervals."""
    these, like = found.these_cells, found.cells_like_these
    return f"{these.value:.1f} in {found.cells} cells, {span(these)}, for cells like these {span(like)}"


def span(of: Estimate) -> str:
    """An interval of 95 %."""
    return f"[{of.low:.1f}, {of.high:.1f}]"


def lines(out: Path, draws: int) -> Iterator[str]:
    """What the script prints."""
    study = read_study(STUDY)
    read, _ = read_cells(study, out)
    drawn, _ = sample(study, read, make_settings(draws=draws))

    def clusters(rows: list[int]) -> int:
        return len({drawn.clusters[row] for row in rows})

    def lead(other: str, rows: list[int]) -> str:
        return f"  {DEFAULT} − {other}: {told(drawn.difference('combined', DEFAULT, other, rows))}"

    cells = [of.cell for of in read]
    confirming = [row for row, cell in enumerate(cells) if not study.chooses(cell)]
    fresh = [row for row in confirming if (cells[row].target.name, cells[row].regime.name, cells[row].seed) not in SEEN]
    yield f"all {len(confirming)} confirmation cells of {clusters(confirming)} clusters"
    yield from (lead(name, confirming) for name in (CURVE, *OTHERS))
    values, _ = drawn.gap("combined", DEFAULT, CURVE, confirming)
    by_cluster = cluster_means(values, [drawn.clusters[row] for row in confirming])
    largest = max(by_cluster, key=lambda name: by_cluster[name])
    others = [row for row in confirming if drawn.clusters[row] != largest]
    ahead = sum(value > 0 for value in by_cluster.values())
    yield f"without {largest}, where the lead over {CURVE} is {by_cluster[largest]:.1f}; it is ahead in {ahead} of {len(by_cluster)} clusters"
    yield lead(CURVE, others)
    yield f"{len(fresh)} confirmation cells of {clusters(fresh)} clusters, all of them seen with other seeds, ran after the default of null-space was set"
    yield from (f"  {name}: {told(drawn.over('combined', name, fresh))}" for name in (DEFAULT, CURVE, *OTHERS))
    yield from (lead(name, fresh) for name in (CURVE, *OTHERS))


def main() -> None:
    """Compute and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the study's folder")
    parser.add_argument("--draws", type=int, default=10_000, help="of the bootstrap")
    parser.add_argument("--record", type=Path, required=True, help="where to write")
    arguments = parser.parse_args()
    text = "\n".join(lines(arguments.out, arguments.draws)) + "\n"
    print(text, end="")
    arguments.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
