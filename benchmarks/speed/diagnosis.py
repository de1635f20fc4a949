"""Time and peak memory of `deltamend diagnose` on a real pair and on one with the shapes of Llama-3.2-3B.

    python -m benchmarks.speed.diagnosis BASE FINETUNED [--layers 28] [--scratch DIR]

The goals are under 60 s on two cores for a real pair of 135M parameters, and less than 3 GiB for the 3B pair. The
large pair is generated and removed again; its peak memory does not depend on the number of layers. `--layers 0` leaves
it out.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.made_up_checkpoint import ModelShape, write_checkpoint
from benchmarks.shared.measure import DELTAMEND, Usage, apart, machine, run


def row(name: str, usage: Usage) -> str:
    """One line of the table."""
    return f"| {name} | {usage.wall:.0f} | {usage.cpu:.0f} | {usage.peak / 2**30:.2f} |"


def main() -> None:
    """Print a table."""
    parser = script_parser(__doc__)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("finetuned", type=Path, help="folder of the fine-tuned model")
    parser.add_argument("--layers", type=int, default=28, help="layers of the large pair; 0 leaves it out")
    parser.add_argument("--scratch", type=Path, default=None, help="where to make the large pair; removed afterwards")
    arguments = parser.parse_args()
    print(f"{machine()}\n\n| pair | wall, s | processor, s | peak, GiB |\n|---|---|---|---|")
    usage = run((*DELTAMEND, "diagnose", "--quiet", arguments.base, arguments.finetuned))
    print(row(arguments.finetuned.name, usage), flush=True)
    if arguments.layers:
        shape = ModelShape(layers=arguments.layers)
        with tempfile.TemporaryDirectory(prefix="deltamend-bench-", dir=arguments.scratch) as scratch:
            base, finetuned = (Path(scratch) / name for name in ("base", "finetuned"))
            apart(write_checkpoint, base, shape, 0)
            apart(write_checkpoint, finetuned, shape, 1, base)
            usage = run((*DELTAMEND, "diagnose", "--quiet", base, finetuned))
        print(row(f"3B shapes, {arguments.layers} layers and the embedding", usage))


if __name__ == "__main__":
    main()
