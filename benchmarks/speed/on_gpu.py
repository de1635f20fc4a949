"""One matrix through the filter on a GPU, beside the CPU's route and the full SVD on the GPU.

    python -m benchmarks.speed.on_gpu

It prints a Markdown table, and refuses to run without a GPU. Times are wall time, the median of several runs after one
that does not count. They include the transfers: the delta is in the CPU's memory before, and Δ* is there afterwards.
Rank and relative difference of Δ* are against float64 on the CPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.shared.arguments import script_parser
from benchmarks.speed.one_matrix import environment, full_svd, reference, synthetic
from deltamend.machine.threads import one_thread_each
from deltamend.spectrum.decompositions import Workspace
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.kept_subspace import SpectralFilter
from deltamend.spectrum.thresholds import GavishDonoho

SHAPES = [(576, 576), (576, 1536), (1024, 3072), (2048, 2048), (3072, 8192)]
RUNS = 3


def measure(work: Callable[[], object]) -> float:
    """Median seconds of a few runs after the first."""
    times: list[float] = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def line(shape: tuple[int, int]) -> str:
    """A row of the table."""
    delta = synthetic(shape, 0.015)
    kept, workspace = np.empty_like(delta), Workspace()

    def on(device: str) -> SpectralFilter:
        found = filter_delta(delta, GavishDonoho(), device=device, workspace=workspace)
        found.apply(delta, kept)
        return found

    found = on("cuda")
    assert found.median is not None  # noqa: S101 - the rule asks for it
    coefficient = found.threshold / found.median
    exact, rank = reference(delta, coefficient)
    difference = float(np.linalg.norm(kept - exact) / np.linalg.norm(exact))
    gpu = measure(lambda: on("cuda"))
    with one_thread_each():
        cpu = measure(lambda: on("cpu"))
    svd = measure(lambda: full_svd(torch.from_numpy(delta).to("cuda"), coefficient).cpu())
    ranks = str(found.rank) if found.rank == rank else f"**{found.rank} ≠ {rank}**"
    cells = [f"{shape[0]}×{shape[1]}", ranks, f"{difference:.1e}", found.route]
    return "| " + " | ".join([*cells, *(f"{seconds:.4f}" for seconds in (gpu, cpu, svd))]) + " |"


def main() -> None:
    """Run and print."""
    script_parser(__doc__).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; run it where there is one")
    print(
        f"gpu: {torch.cuda.get_device_name()}", *(f"{key}: {value}" for key, value in environment().items()), sep=", "
    )
    print("\n| shape | rank | rel. diff. | route | GPU s | CPU s, one thread | full SVD on the GPU s |")
    print("|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        print(line(shape), flush=True)


if __name__ == "__main__":
    main()
