"""One matrix through the filter, against the full SVD of the paper's code.

    python -m benchmarks.speed.one_matrix [--quick] [--threads 1,2] [--json FILE] [--pair BASE FINETUNED]

It prints a Markdown table. Every time is the median of several runs, and every ratio is taken within the run: how many
times longer `torch.linalg.svd(full_matrices=False)` in float32 with reconstruction takes (the baseline), how many
times longer scipy's `gesdd` does, and how long the filter takes in units of one matrix product (2·m·n·min(m, n)
flops). With one BLAS thread, times are CPU time of the thread, which other work on the machine disturbs little; with
two, wall time. Rank and relative difference of Δ* are against float64: a full SVD, or `eigh` of the float64 Gram
matrix where a full SVD would take minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy
import threadpoolctl
import torch
from scipy.linalg import svd as scipy_svd

from benchmarks.shared.arguments import script_parser
from deltamend.spectrum.blas import gemm
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.decompositions import Workspace
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.thresholds import GavishDonoho

SMALL = [(576, 576), (576, 1536)]
SHAPES = [
    *SMALL,
    (1024, 3072),
    (2048, 2048),
    (3072, 3072),
    (3072, 8192),
    (8192, 3072),
    (2560, 9728),
    (9728, 2560),
    (49152, 576),
]
QUICK = [*SMALL, (1024, 3072), (2048, 2048)]
FULL_REFERENCE_UP_TO = 5_000_000  # entries; beyond, the float64 reference is `eigh` of the Gram matrix
RUNS, BUDGET = 5, 8.0  # runs of each piece of work, fewer once they took so many seconds together


@dataclass(frozen=True)
class Row:
    """One line of the table; times in seconds."""

    name: str
    shape: tuple[int, int]
    threads: int
    rank: int
    reference_rank: int
    relative_difference: float
    largest_over_median: float
    route: str
    filter_s: float
    torch_svd_s: float
    gesdd_s: float
    gemm_s: float


def bulk(shape: tuple[int, int], rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Weights stored in bf16, and the rounding error that storing an update in bf16 leaves in Δ."""
    weights = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02))
    base = weights.bfloat16().float()
    moved = base + torch.from_numpy(rng.standard_normal(shape, dtype=np.float32) * np.float32(1e-4))
    return base.numpy(), (moved.bfloat16().float() - base).numpy()


def synthetic(shape: tuple[int, int], share: float, seed: int = 0) -> FloatArray:
    """A power-law signal of about `share`·min(m, n) singular values over the rounding bulk of a bf16 checkpoint."""
    rng = np.random.default_rng(seed)
    m, n = shape
    _, noise = bulk(shape, rng)
    rank = max(1, round(share * min(m, n)))
    edge = float(np.std(noise)) * (math.sqrt(m) + math.sqrt(n))
    values = (1.6 * edge * (np.arange(1, rank + 1) / rank) ** -0.7).astype(np.float32)
    left, right = (rng.standard_normal((side, rank), dtype=np.float32) / np.float32(math.sqrt(side)) for side in shape)
    noise += (left * values) @ right.T
    return noise


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, FloatArray]]:
    """Names and deltas."""
    for shape in QUICK if arguments.quick else SHAPES:
        yield "synthetic, k ≈ 1.5%", synthetic(shape, 0.015)
        if shape in SMALL:
            yield "synthetic, k ≈ 23%", synthetic(shape, 0.23)
    if arguments.pair:
        yield from real_cases(*arguments.pair)
    else:
        print("Real pair: skipped, no --pair BASE FINETUNED given.\n")


def real_cases(base: Path, finetuned: Path) -> Iterator[tuple[str, FloatArray]]:
    """The first delta of every shape in a pair of checkpoint folders."""
    from safetensors.torch import load_file

    before, after = (
        {k: v for f in sorted(p.glob("*.safetensors")) for k, v in load_file(f).items()} for p in (base, finetuned)
    )
    seen: set[tuple[int, ...]] = set()
    for name, tensor in after.items():
        if tensor.ndim == 2 and tensor.shape not in seen and name in before and before[name].shape == tensor.shape:
            seen.add(tuple(tensor.shape))
            yield f"real, {name}", (tensor.float() - before[name].float()).numpy()


def measure(work: Callable[[], object], threads: int) -> float:
    """Median seconds of a few runs, fewer where they take long."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: list[float] = []
    while len(times) < RUNS and sum(times) < BUDGET:
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times)


def full_svd(delta: torch.Tensor, rule_coefficient: float) -> torch.Tensor:
    """What the paper's code does: full SVD in float32, threshold, reconstruction of the kept part."""
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    keep = s > rule_coefficient * s.median()
    kept: torch.Tensor = (u[:, keep] * s[keep]) @ vt[keep]
    return kept


def reference(delta: FloatArray, coefficient: float) -> tuple[FloatArray, int]:
    """Δ* and rank in float64."""
    exact = delta.astype(np.float64)
    if delta.size <= FULL_REFERENCE_UP_TO:
        u, s, vt = np.linalg.svd(exact, full_matrices=False)
        rank = int(np.count_nonzero(s > coefficient * np.median(s)))
        return (u[:, :rank] * s[:rank]) @ vt[:rank], rank
    wide = exact if exact.shape[0] <= exact.shape[1] else exact.T
    squares, vectors = np.linalg.eigh(wide @ wide.T)
    s = np.sqrt(np.maximum(squares, 0.0))
    basis = vectors[:, s > coefficient * np.median(s)]
    kept = basis @ (basis.T @ wide)
    return kept if exact.shape[0] <= exact.shape[1] else kept.T, basis.shape[1]


def measured(name: str, delta: FloatArray, threads: int) -> Row:
    """One row: the filter and everything it is compared with, at this number of threads."""
    m, n = delta.shape
    workspace, kept = Workspace(), np.empty_like(delta)
    tensor = torch.from_numpy(delta)
    wide = delta if m <= n else delta.T
    square = np.empty((min(m, n), min(m, n)), np.float32, order="F")
    found = filter_delta(delta, GavishDonoho(), workspace=workspace)
    assert found.median is not None  # noqa: S101 - the rule asks for it
    coefficient = found.threshold / found.median
    exact, rank = reference(delta, coefficient)
    difference = float(np.linalg.norm(found.apply(delta, kept) - exact) / max(float(np.linalg.norm(exact)), 1e-300))
    del exact
    return Row(
        name=name,
        shape=(m, n),
        threads=threads,
        rank=found.rank,
        reference_rank=rank,
        relative_difference=difference,
        largest_over_median=found.largest / found.median,
        route=found.route,
        filter_s=measure(lambda: filter_delta(delta, GavishDonoho(), workspace=workspace).apply(delta, kept), threads),
        torch_svd_s=measure(lambda: full_svd(tensor, coefficient), threads),
        gesdd_s=measure(lambda: scipy_svd(delta, full_matrices=False, check_finite=False), threads),
        gemm_s=measure(lambda: gemm(wide, wide.T, square), threads),
    )


def line(row: Row) -> str:
    """A row of the Markdown table."""
    m, n = row.shape
    rank = str(row.rank) if row.rank == row.reference_rank else f"**{row.rank} ≠ {row.reference_rank}**"
    cells = [
        row.name,
        f"{m}×{n}",
        str(row.threads),
        rank,
        f"{row.relative_difference:.1e}",
        f"{row.largest_over_median:.0f}",
        row.route,
        f"{row.filter_s:.4f}",
        f"{row.torch_svd_s:.3f}",
        f"{row.torch_svd_s / row.filter_s:.1f}",
        f"{row.gesdd_s / row.filter_s:.1f}",
        f"{row.filter_s / row.gemm_s:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEADER = (
    "| delta | shape | threads | rank | rel. diff. | σ₁/median | route | filter s | torch svd s "
    "| × torch svd | × gesdd | GEMM passes |\n|" + "---|" * 12
)


def environment() -> dict[str, str]:
    """Machine and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        cpu = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), cpu)
    blas = sorted(
        {f"{lib['internal_api']} {lib['version']}" for lib in threadpoolctl.threadpool_info() if lib["version"]}
    )
    return {
        "cpu": cpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "blas": ", ".join(blas),
    }


def main() -> None:
    """Run and print."""
    parser = script_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="only shapes up to 2048×2048")
    parser.add_argument("--threads", default="1,2", help="BLAS threads to measure with (default: 1,2)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--pair", nargs=2, type=Path, metavar=("BASE", "FINETUNED"), help="folders of a real pair")
    arguments = parser.parse_args()
    rows: list[Row] = []
    print(", ".join(f"{key}: {value}" for key, value in environment().items()), "\n")
    chosen = list(map(int, arguments.threads.split(",")))
    lines: list[str] = []
    for name, delta in cases(arguments):
        for threads in chosen:
            torch.set_num_threads(threads)
            with threadpoolctl.threadpool_limits(threads):
                rows.append(measured(name, delta, threads))
            lines.append(line(rows[-1]))
            if len(lines) == 1:
                print(HEADER)
            print(lines[-1], flush=True)
    if arguments.json:
        content = {"environment": environment(), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
