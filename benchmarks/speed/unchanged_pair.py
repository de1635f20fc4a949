"""The cost of a repair in which nothing is filtered, a pair with Δ = 0, against `cp`.

    python -m benchmarks.speed.unchanged_pair [--layers 8] [--repeats N] [--scratch DIR]

The goal is at most 1.5 times the wall-clock time of `cp -r`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.made_up_checkpoint import ModelShape, write_checkpoint
from benchmarks.shared.measure import DELTAMEND, alternate, apart, machine, median


def main() -> None:
    """Print a table."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "--layers",
        type=int,
        default=8,
        help="layers of Llama-3.2-3B's shape, 0.19 GB each, beside its 0.8 GB embedding",
    )
    parser.add_argument("--repeats", type=int, default=5, help="number of runs of each command")
    parser.add_argument("--scratch", type=Path, default=None, help="where to make the pair; removed afterwards")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deltamend-bench-", dir=arguments.scratch) as scratch:
        base, finetuned = Path(scratch) / "base", Path(scratch) / "finetuned"
        apart(write_checkpoint, base, ModelShape(layers=arguments.layers), 0)
        shutil.copytree(base, finetuned)
        outs = [Path(scratch) / "out", Path(scratch) / "copy"]
        found = alternate(
            {
                "deltamend repair": (*DELTAMEND, "repair", "--quiet", base, finetuned, outs[0]),
                "cp -r": ("cp", "-r", finetuned, outs[1]),
                "cp -r, then sync": ("sh", "-c", f"cp -r '{finetuned}' '{outs[1]}' && sync -f '{outs[1]}'"),
                "import only": (*DELTAMEND, "--help"),
            },
            outs,
            arguments.repeats,
        )
        gigabytes = sum(file.stat().st_size for file in finetuned.iterdir()) / 1e9
    print(f"{machine()}\na checkpoint of {gigabytes:.1f} GB; medians of {arguments.repeats} runs in turn\n")
    print("| command | wall s | processor s | peak MiB |\n|---|---|---|---|")
    for name, usages in found.items():
        figures = median(usages, "wall"), median(usages, "cpu"), median(usages, "peak") / 2**20
        print(f"| {name} | {figures[0]:.1f} | {figures[1]:.1f} | {figures[2]:.0f} |")
    wall = {name: median(usages, "wall") for name, usages in found.items()}
    print(f"\n{wall['deltamend repair'] / wall['cp -r']:.2f} times `cp -r` (goal 1.5)")
    print(
        f"{wall['deltamend repair'] / wall['cp -r, then sync']:.2f} times `cp -r` with its data on the disk, as deltamend's is"
    )


if __name__ == "__main__":
    main()
