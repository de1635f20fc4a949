"""The default of null-space in the cells of studies/smollm2.yaml that ran after it was set, which no choice can have seen.

python benchmarks/study_fresh.py docs/results/smollm2 --record benchmarks/study_fresh.txt
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from deltamend.score.cells import OverCells
from deltamend.score.result import Estimate
from deltamend.score.scoring import make_settings
from deltamend.study.config import read_study
from deltamend.study.scored_cells import read_cells, sample

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
    fresh = [
        index
        for index, of in enumerate(read)
        if not study.chooses(of.cell) and (of.cell.target.name, of.cell.regime.name, of.cell.seed) not in SEEN
    ]
    yield f"{len(fresh)} confirmation cells of {len({drawn.clusters[index] for index in fresh})} clusters ran after the default of null-space was set"
    for name in (DEFAULT, CURVE, *OTHERS):
        yield f"  {name}: {told(drawn.over('combined', name, fresh))}"
    for name in (CURVE, *OTHERS):
        yield f"  {DEFAULT} − {name}: {told(drawn.difference('combined', DEFAULT, name, fresh))}"


def main() -> None:
    """Compute and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the study's folder")
    parser.add_argument("--draws", type=int, default=2000, help="of the bootstrap")
    parser.add_argument("--record", type=Path, required=True, help="where to write")
    arguments = parser.parse_args()
    text = "\n".join(lines(arguments.out, arguments.draws)) + "\n"
    print(text, end="")
    arguments.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
