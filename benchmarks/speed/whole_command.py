"""`deltamend repair` on a real pair, against the plain script that loads both models and runs the full SVD.

    python -m benchmarks.speed.whole_command BASE FINETUNED [--repeats N]

The goals are a sixth of the script's wall-clock time and a quarter of its memory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.measure import DELTAMEND, Usage, alternate, machine, median


def main() -> None:
    """Print a table."""
    parser = script_parser(__doc__)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("finetuned", type=Path, help="folder of the fine-tuned model")
    parser.add_argument("--repeats", type=int, default=3, help="number of runs of each command")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deltamend-bench-", dir=arguments.finetuned.parent) as scratch:
        outs = [Path(scratch) / "fast", Path(scratch) / "naive"]
        pair = (arguments.base, arguments.finetuned)
        found = alternate(
            {
                "deltamend repair": (*DELTAMEND, "repair", "--quiet", *pair, outs[0]),
                "full SVD script": (sys.executable, "-m", "benchmarks.speed.naive_repair", *pair, outs[1]),
                "import only": (sys.executable, "-c", "import deltamend"),
            },
            outs,
            arguments.repeats,
        )
    print_table(found)


def print_table(found: dict[str, list[Usage]]) -> None:
    """Medians, and the ratios the goals are about."""
    print(f"{machine()}\nmedians of {len(found['deltamend repair'])} runs in turn\n")
    print("| command | wall s | processor s | peak MiB |\n|---|---|---|---|")
    for name, usages in found.items():
        figures = median(usages, "wall"), median(usages, "cpu"), median(usages, "peak") / 2**20
        print(f"| {name} | {figures[0]:.1f} | {figures[1]:.1f} | {figures[2]:.0f} |")
    fast, naive, started = found["deltamend repair"], found["full SVD script"], found["import only"]
    wall, peak = (median(naive, field) / median(fast, field) for field in ("wall", "peak"))
    print(f"\ntime: {wall:.1f} times less (goal 6); memory: {peak:.1f} times less (goal 4)")
    beyond = (median(naive, "peak") - median(started, "peak")) / (median(fast, "peak") - median(started, "peak"))
    print(f"memory beyond what importing the libraries takes: {beyond:.1f} times less")


if __name__ == "__main__":
    main()
