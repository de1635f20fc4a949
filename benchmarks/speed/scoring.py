"""How long the paired bootstrap of a whole study takes: 14 cells, nine benchmarks, 10,000 draws.

    python -m benchmarks.speed.scoring [--cells 14] [--methods 9] [--draws 10000] [--out FILE]

The benchmarks have as many items as the sets of the `paper` suite that are used without a network. The baseline is the
plain loop: for every cell, benchmark and draw, take the rows and their mean; it is timed on a few draws and scaled.
Wall-clock seconds and CPU seconds of one process with one BLAS thread.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.measure import machine
from deltamend.scoring.across_cells import score_across_cells
from deltamend.scoring.cell_means import draw_cells
from deltamend.scoring.paired_cell import PairedCell
from deltamend.scoring.paired_items import PairedTask
from deltamend.scoring.settings import Settings

ITEMS = {
    "mmlu": 2280,
    "triviaqa": 1000,
    "truthfulqa": 817,
    "arc_challenge": 1172,
    "gsm8k": 1319,
    "ifeval": 541,
    "math500": 500,
    "mnli": 2000,
    "hellaswag": 2000,
}
TARGET_ITEMS = 500
LOOPED_DRAWS = 20


def made_up(number: int, methods: int) -> PairedCell:
    """One cell of right-or-wrong items."""
    random = np.random.default_rng(number)
    names = ("base", "finetuned", *(f"method {index}" for index in range(methods)))

    def task(name: str, items: int) -> PairedTask:
        hard = random.random((items, 1))
        right = 0.7 * hard + 0.3 * random.random((items, len(names))) < random.uniform(0.3, 0.7, len(names))
        return PairedTask(name, "acc", None, None, tuple(map(str, range(items))), right.astype(np.float64))

    benchmarks = tuple(task(name, items) for name, items in ITEMS.items())
    models = dict.fromkeys(names, "made up")
    return PairedCell(f"cell {number}", models, task(f"target {number}", TARGET_ITEMS), benchmarks, ())


def looped(cells: list[PairedCell], draws: int) -> float:
    """Seconds of the plain loop for `draws` draws, scaled from a few."""
    random = np.random.default_rng(0)
    started = time.process_time()
    for cell in cells:
        for task in cell.tasks:
            for _ in range(LOOPED_DRAWS):
                task.scores[random.integers(len(task.ids), size=len(task.ids))].mean(axis=0)
    return (time.process_time() - started) * draws / LOOPED_DRAWS


def main() -> None:
    """Print a Markdown table."""
    parser = script_parser(__doc__)
    parser.add_argument("--cells", type=int, default=14, help="number of cells")
    parser.add_argument("--methods", type=int, default=9, help="number of methods")
    parser.add_argument("--draws", type=int, default=10_000, help="number of bootstrap resamples")
    parser.add_argument("--out", type=Path, default=None, help="write the table here as well")
    arguments = parser.parse_args()
    cells = [made_up(number, arguments.methods) for number in range(arguments.cells)]
    settings = Settings(draws=arguments.draws)
    rows = []
    with threadpool_limits(1):
        for name, work in (
            ("draws of all cells", lambda: draw_cells(cells, settings)),
            (
                "draws, every figure, intervals and tests",
                lambda: score_across_cells(cells, [c.name for c in cells], settings),
            ),
        ):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            rows.append((name, f"{time.perf_counter() - wall:.1f}", f"{time.process_time() - cpu:.1f}"))
        rows.append(("baseline, draws alone: the plain loop, scaled", "–", f"{looped(cells, arguments.draws):.0f}"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = "\n".join(
        [
            f"{arguments.cells} cells × {len(ITEMS)} benchmarks and a target, {arguments.methods} methods, "
            f"{arguments.draws} draws; peak memory {peak:.2f} GiB.",
            machine(),
            "",
            "| | wall, s | CPU, s |",
            "|---|---:|---:|",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    )
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
