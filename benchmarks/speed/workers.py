"""Whether several workers with one BLAS thread each are faster than one worker with several threads.

    python -m benchmarks.speed.workers BASE FINETUNED [--repeats N]

deltamend runs one BLAS thread in each worker. The alternative, one tensor at a time on all cores, is timed here on the
same matrices in memory, through the same filter.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.measure import machine
from benchmarks.speed.naive_repair import load_folder
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.thresholds import GavishDonoho


def deltas(base: Path, finetuned: Path) -> list[FloatArray]:
    """Every matrix of the update in fp32, the largest first."""
    ours, theirs = load_folder(base), load_folder(finetuned)
    matrices = [(theirs[name].float() - tensor.float()).numpy() for name, tensor in ours.items() if tensor.ndim == 2]
    return sorted(matrices, key=np.size, reverse=True)


def wall(matrices: list[FloatArray], workers: int, threads: int) -> float:
    """Seconds to filter all matrices."""

    def filter_one(delta: FloatArray) -> FloatArray:
        return filter_delta(delta, GavishDonoho()).dense(delta)

    started = time.perf_counter()
    with threadpool_limits(threads), ThreadPoolExecutor(workers) as executor:
        for _ in executor.map(filter_one, matrices):
            pass
    return time.perf_counter() - started


def main() -> None:
    """Print a table."""
    parser = script_parser(__doc__)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("finetuned", type=Path, help="folder of the fine-tuned model")
    parser.add_argument("--repeats", type=int, default=3, help="number of runs of each command")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    real = deltas(arguments.base, arguments.finetuned)
    generator = torch.Generator().manual_seed(0)
    large = [torch.randn(3072, 3072, generator=generator).numpy() for _ in range(4)]
    settings: dict[str, Callable[[list[FloatArray]], float]] = {
        "1 worker, 1 thread": lambda matrices: wall(matrices, 1, 1),
        f"1 worker, {cores} threads": lambda matrices: wall(matrices, 1, cores),
        f"{cores} workers, 1 thread each": lambda matrices: wall(matrices, cores, 1),
        f"{cores} workers, {cores} threads each": lambda matrices: wall(matrices, cores, cores),
    }
    print(f"{machine()}\nmedian of {arguments.repeats} runs in turn, wall seconds\n")
    print("| | all deltas of the real pair | four of 3072×3072 |\n|---|---|---|")
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in settings}
    for _ in range(arguments.repeats):
        for name, run in settings.items():
            for seconds, matrices in zip(found[name], (real, large), strict=True):
                seconds.append(run(matrices))
    for name, columns in found.items():
        print(f"| {name} | {' | '.join(f'{statistics.median(seconds):.2f}' for seconds in columns)} |")


if __name__ == "__main__":
    main()
