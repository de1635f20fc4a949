"""Time and memory of `deltamend repair` on a pair with the shapes of Llama-3.2-3B, 6.4 GB a side in bf16.

    python -m benchmarks.speed.large_pair [--layers 28] [--scratch DIR]

The pair is generated and removed again. The baseline, `torch.linalg.svd` and reconstruction in fp32, is timed on one
matrix of each shape and scaled up by how often the shape occurs. The goals are a fifteenth of its time, and less than
3 GiB.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.made_up_checkpoint import ModelShape, update, write_checkpoint
from benchmarks.shared.measure import DELTAMEND, apart, machine, run
from benchmarks.speed.naive_repair import filter_matrix


def baseline_seconds(shape: ModelShape) -> tuple[float, list[str]]:
    """Seconds of the full SVD for the whole model on one core, from one matrix of each shape; and lines that say so."""
    counts = Counter(size for _, size in shape.matrices())
    generator = torch.Generator().manual_seed(2)
    total, lines = 0.0, []
    torch.set_num_threads(1)
    for size, count in counts.items():
        rows = min(size[0], 8 * size[1])  # the embedding is timed on its first rows: the SVD's time is linear in them
        delta = update((rows, size[1]), generator)
        started = time.perf_counter()
        filter_matrix(delta)
        seconds = (time.perf_counter() - started) * size[0] / rows
        total += count * seconds
        lines.append(f"| {size[0]}×{size[1]} | {count} | {seconds:.1f} |")
    return total, lines


def main() -> None:
    """Print a table."""
    parser = script_parser(__doc__)
    parser.add_argument("--layers", type=int, default=28, help="layers of the pair")
    parser.add_argument("--scratch", type=Path, default=None, help="where to make the pair; removed afterwards")
    arguments = parser.parse_args()
    shape = ModelShape(layers=arguments.layers)
    with tempfile.TemporaryDirectory(prefix="deltamend-bench-", dir=arguments.scratch) as scratch:
        base, finetuned, out = (Path(scratch) / name for name in ("base", "finetuned", "out"))
        apart(write_checkpoint, base, shape, 0)
        apart(write_checkpoint, finetuned, shape, 1, base)
        gigabytes = sum(file.stat().st_size for file in finetuned.iterdir()) / 1e9
        usage = run((*DELTAMEND, "repair", "--quiet", base, finetuned, out))
        manifest = json.loads((out / "deltamend.json").read_text())
    found = [tensor["spectrum"] for tensor in manifest["tensors"] if tensor["spectrum"]]
    routes = Counter(spectrum["route"] for spectrum in found)
    ranks = sorted(spectrum["rank"] for spectrum in found)
    total, lines = apart(baseline_seconds, shape)
    print(f"{machine()}\n{arguments.layers} layers, {gigabytes:.1f} GB a side\n")
    print("| shape | matrices | full SVD and reconstruction, s each, one core |\n|---|---|---|")
    print("\n".join(lines))
    print(
        f"\n`deltamend repair`: {usage.wall:.0f} s wall, {usage.cpu:.0f} s processor, peak {usage.peak / 2**30:.2f} GiB (goal 3)"
    )
    print(f"routes {dict(routes)}, rank kept {ranks[0]} to {ranks[-1]}")
    print(
        f"full SVD, whole model: {total:.0f} s on one core, {total / usage.wall:.1f} times the wall time of the command (goal 15);"
    )
    print(f"half of that if two cores shared the matrices perfectly, {total / 2 / usage.wall:.1f} times")


if __name__ == "__main__":
    main()
