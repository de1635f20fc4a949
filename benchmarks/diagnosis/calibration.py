"""Whether the p-values of `deltamend diagnose` are right, and which departures from noise its tests detect.

    python -m benchmarks.diagnosis.calibration [--draws 1000] [--out FILE]

Calibration: for pure noise every p-value must be uniformly distributed. How far 1,000 of them are from the uniform law
is tested by Kolmogorov–Smirnov. Power: one assumption at a time is broken, and the table shows in which share of draws
each test rejects at 1 %. The tables are written to benchmarks/results/diagnosis/calibration.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
from scipy.stats import kstest

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.paths import RESULTS
from deltamend.diagnosis.matrix import Question, diagnose_matrix
from deltamend.diagnosis.records import MatrixDiagnosis
from deltamend.machine.threads import one_thread_each
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.views import MemoryMatrix
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.decompositions import Workspace
from deltamend.spectrum.goodness_of_fit import check_bulk, noise_spectrum
from deltamend.spectrum.subspace import all_values
from deltamend.spectrum.thresholds import median_coefficient

Array = npt.NDArray[np.float64]
Make = Callable[[np.random.Generator], Array]

SHAPE = (200, 600)
LARGER = ((192, 576), (576, 576), (576, 1536), (576, 49152), (1024, 3072))
BITS = np.dtype(ml_dtypes.bfloat16)
LEVEL = 0.01
NOISE = 1e-4  # of an entry, beside weights of 0.02


def gaussian(random: np.random.Generator) -> Array:
    """Pure noise."""
    return random.standard_normal(SHAPE)


def with_row_sizes(spread: float) -> Make:
    """Rows whose standard deviations have a log-normal spread."""
    return lambda random: random.standard_normal(SHAPE) * np.exp(spread * random.standard_normal((SHAPE[0], 1)))


def with_ar_rows(correlation: float) -> Make:
    """Rows that follow one another as AR(1)."""

    def make(random: np.random.Generator) -> Array:
        rows = random.standard_normal(SHAPE)
        for index in range(1, SHAPE[0]):
            rows[index] = correlation * rows[index - 1] + np.sqrt(1.0 - correlation**2) * rows[index]
        return rows

    return make


def student(random: np.random.Generator) -> Array:
    """Entries with three degrees of freedom: no fourth moment."""
    return np.asarray(random.standard_t(3.0, SHAPE) / np.sqrt(3.0))


def tests_of(found: MatrixDiagnosis) -> dict[str, float]:
    """Every p-value of one matrix; where nothing can be tested, 1."""
    bulk, entries = found.bulk, found.entries
    if entries is None:
        raise ValueError(f"{found.name} is zero")
    return {
        "bulk KS": bulk.ks_p if bulk else 1.0,
        "bulk AD": bulk.ad_p if bulk else 1.0,
        "row variances": entries.rows.variation_p,
        "column variances": entries.columns.variation_p,
        "neighbouring rows": entries.rows.correlation_p,
        "neighbouring columns": entries.columns.correlation_p,
        "kurtosis": entries.kurtosis_p,
    }


def diagnosed(make: Make, dtype: npt.DTypeLike, scale: float, random: np.random.Generator) -> MatrixDiagnosis:
    """An update of random weights, stored in a dtype and diagnosed as the command does it."""
    weights = (0.02 * random.standard_normal(SHAPE)).astype(BITS)
    finetuned = (weights.astype(np.float64) + scale * make(random)).astype(dtype)
    question = Question("planted", SHAPE[0], np.dtype(np.float32))
    base = MemoryMatrix(weights.astype(dtype))
    return diagnose_matrix(base, MemoryMatrix(finetuned), question, Buffers())


def calibration(draws: int) -> list[str]:
    """One line a test: whether its p-values are uniform on noise."""
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        for name, p in tests_of(diagnosed(gaussian, np.float32, NOISE, random)).items():
            found.setdefault(name, []).append(p)
    lines = ["| test | KS of p against uniform | its p-value | rejected at 1% |", "|---|---|---|---|"]
    for name, values in found.items():
        uniform = kstest(values, "uniform")
        rejected = np.mean(np.array(values) <= LEVEL)
        lines.append(f"| {name} | {uniform.statistic:.3f} | {uniform.pvalue:.2f} | {rejected:.1%} |")
    return lines


def bulk_p(values: FloatArray, shape: tuple[int, int]) -> tuple[float, float, int]:
    """Both p-values of a spectrum at DG-Hard's threshold, and the rank it keeps."""
    threshold = median_coefficient(min(shape) / max(shape)) * float(np.median(values))
    test = check_bulk(values, shape, threshold)
    if test is None:
        raise ValueError("nothing to test")
    return test.ks_p, test.ad_p, values.size - test.size


def other_shapes(draws: int) -> list[str]:
    """The bulk test where its reference is scaled from a smaller matrix, and beside a signal."""
    random = np.random.default_rng(1)
    lines = ["| noise | KS test: KS of p, p-value, rejected at 1% | AD test: the same |", "|---|---|---|"]
    rows: dict[str, list[tuple[float, float, int]]] = {
        f"{m}×{n}": [bulk_p(noise_spectrum((m, n), random)[::-1], (m, n)) for _ in range(draws)] for m, n in LARGER
    }
    for rank in (5, 20, 50):
        rows[f"{SHAPE[0]}×{SHAPE[1]} and a signal of rank {rank}"] = [
            bulk_p(all_values(with_signal(rank, random), Workspace()), SHAPE) for _ in range(draws)
        ]
    for name, found in rows.items():
        cells = []
        for values in (np.array([row[0] for row in found]), np.array([row[1] for row in found])):
            uniform = kstest(values, "uniform")
            cells.append(f"{uniform.statistic:.3f}, {uniform.pvalue:.2f}, {np.mean(values <= LEVEL):.1%}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def with_signal(rank: int, random: np.random.Generator) -> Array:
    """Noise and a signal whose singular values are three to six times the edge of the noise."""
    m, n = SHAPE
    edge = np.sqrt(m) + np.sqrt(n)
    left = np.linalg.qr(random.standard_normal((m, rank)))[0]
    right = np.linalg.qr(random.standard_normal((n, rank)))[0]
    return np.asarray((left * random.uniform(3.0, 6.0, rank) * edge) @ right.T + gaussian(random))


def power(draws: int) -> list[str]:
    """One line a violation: how often each test rejects at 1%, and how often a matrix is called rounding-dominated."""
    cases: dict[str, tuple[Make, npt.DTypeLike, float]] = {
        "none": (gaussian, np.float32, NOISE),
        "rows' standard deviations ±5%": (with_row_sizes(0.05), np.float32, NOISE),
        "rows' standard deviations ±30%": (with_row_sizes(0.3), np.float32, NOISE),
        "AR(1) rows, correlation 0.05": (with_ar_rows(0.05), np.float32, NOISE),
        "AR(1) rows, correlation 0.3": (with_ar_rows(0.3), np.float32, NOISE),
        "t₃ entries": (student, np.float32, NOISE),
        "rounding to bf16, noise of about half an ulp": (gaussian, BITS, 4e-5),
    }
    random = np.random.default_rng(2)
    lines: list[str] = []
    for name, (make, dtype, scale) in cases.items():
        found = [diagnosed(make, dtype, scale, random) for _ in range(draws)]
        values = [tests_of(one) for one in found]
        shares = {test: float(np.mean([row[test] <= LEVEL for row in values])) for test in values[0]}
        shares["any, Bonferroni"] = float(np.mean([min(row.values()) * len(row) <= LEVEL for row in values]))
        shares["rounding rule"] = float(np.mean([one.verdict == "rounding-dominated" for one in found]))
        if not lines:
            lines = [f"| violation | {' | '.join(shares)} |", f"|---{'|---' * len(shares)}|"]
        lines.append(f"| {name} | {' | '.join(f'{share:.0%}' for share in shares.values())} |")
    return lines


def main() -> None:
    """Write the page."""
    parser = script_parser(__doc__)
    parser.add_argument("--draws", type=int, default=1000, help="number of matrices that are drawn")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "diagnosis" / "calibration.md", help="Markdown file to write"
    )
    arguments = parser.parse_args()
    draws: int = arguments.draws
    with one_thread_each():
        parts = [
            "# Calibration and power of `deltamend diagnose`",
            f"Written by `python -m benchmarks.diagnosis.calibration --draws {draws}`.",
            f"## Pure noise, {SHAPE[0]}×{SHAPE[1]}, {draws} draws through the whole diagnosis",
            "\n".join(calibration(draws)),
            f"## The bulk test on other shapes and beside a signal, {draws} draws each",
            "\n".join(other_shapes(draws)),
            f"## Power at {SHAPE[0]}×{SHAPE[1]}: share of {draws // 2} draws that each test rejects at 1%",
            "\n".join(power(draws // 2)),
        ]
    arguments.out.write_text("\n\n".join(parts) + "\n")
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
