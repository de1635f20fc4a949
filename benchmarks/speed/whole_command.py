"""`deltamend repair` on a real pair, against the plain script that loads both models and runs the full SVD.

    python -m benchmarks.speed.whole_command BASE FINETUNED [--repeats N]

Goal: 6 times less wall-clock time, a quarter of the memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.shared.measure import DELTAMEND, Usage, alternate, machine, median


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("base", type=Path)
    parser.add_argument("finetuned", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    naive = Path(__file__).with_name("naive_repair.py")
    with tempfile.TemporaryDirectory(prefix="deltamend-bench-", dir=arguments.finetuned.parent) as scratch:
        outs = [Path(scratch) / "fast", Path(scratch) / "naive"]
        pair = (arguments.base, arguments.finetuned)
        found = alternate(
            {
                "deltamend repair": (*DELTAMEND, "repair", "--quiet", *pair, outs[0]),
                "full SVD script": (sys.executable, naive, *pair, outs[1]),
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
