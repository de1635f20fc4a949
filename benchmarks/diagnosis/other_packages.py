"""Edges of the noise and counts of signal directions beside those of scikit-rmt and WeightWatcher.

    python -m benchmarks.diagnosis.other_packages write BASE FINETUNED SHUFFLED spectra.npz
    SCIKIT_RMT_PYTHON -m benchmarks.diagnosis.other_packages scikit-rmt spectra.npz
    WEIGHTWATCHER_PYTHON -m benchmarks.diagnosis.other_packages weightwatcher spectra.npz

Each package needs an environment of its own (scikit-rmt asks for numpy<2), whose Python is meant by the words in
capitals. The first command writes the singular values of a few updates with what deltamend says of them. The second
prints the edges and the distribution function that scikit-rmt gives for the noise level deltamend fitted. The third
lets WeightWatcher fit its own noise level to a smoothed density and count the eigenvalues beyond the edge.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.shared.arguments import script_parser

NAMES = ("0.mlp.up_proj", "14.self_attn.v_proj", "14.mlp.down_proj", "29.self_attn.k_proj")
PLANTED = (((192, 576), 5), ((576, 1536), 20), ((576, 1536), 60))


def write(base: Path, folders: list[Path], out: Path) -> None:
    """Singular values, shape, and edges, noise, distance and count of each matrix."""
    import deltamend
    from deltamend.diagnosis.matrix import Question, diagnose_matrix
    from deltamend.matrices.buffers import Buffers
    from deltamend.matrices.views import MemoryMatrix

    found: dict[str, deltamend.MatrixDiagnosis] = {}
    pattern = "|".join(f"layers\\.{name}\\." for name in NAMES)
    for folder in folders:
        for matrix in deltamend.diagnose(base, folder, include=pattern, values=True).matrices:
            found[f"{folder.name} {matrix.layer}.{matrix.module}"] = matrix
    for shape, rank in PLANTED:
        name = f"noise {shape[0]}×{shape[1]} and {rank} spikes"
        delta = MemoryMatrix(noise_and_spikes(shape, rank))
        zeros = MemoryMatrix(np.zeros(shape, np.float32))
        question = Question(name, shape[0], np.dtype(np.float32), all_values=True)
        found[name] = diagnose_matrix(zeros, delta, question, Buffers())
    rows = {}
    for key, matrix in found.items():
        spectrum, bulk = matrix.spectrum, matrix.bulk
        if spectrum is None or spectrum.values is None or bulk is None or spectrum.threshold is None:
            raise ValueError(f"{matrix.name} has no spectrum to compare")
        facts = [*matrix.shape, bulk.noise, *bulk.edges, bulk.ks, bulk.beyond_edge, spectrum.threshold]
        rows[key] = np.array([*facts, *spectrum.values])
    np.savez(out, allow_pickle=False, **rows)


def noise_and_spikes(shape: tuple[int, int], rank: int) -> npt.NDArray[np.float32]:
    """Noise, and singular directions of two to four times its edge."""
    random = np.random.default_rng(rank)
    left, right = (np.linalg.qr(random.standard_normal((side, rank)))[0] for side in shape)
    spikes = (left * random.uniform(2.0, 4.0, rank) * (np.sqrt(shape[0]) + np.sqrt(shape[1]))) @ right.T
    return np.asarray(random.standard_normal(shape) + spikes, np.float32)


def scikit_rmt(spectra: Path) -> None:
    """The same law by scikit-rmt: its edges, and the distance with its distribution function."""
    from skrmt.ensemble.spectral_law import MarchenkoPasturDistribution  # type: ignore[import-not-found]

    print("| update | edges, deltamend | edges, scikit-rmt | KS, deltamend | KS, scikit-rmt |\n|---|---|---|---|---|")
    for key, row in np.load(spectra).items():
        m, n = sorted(row[:2])
        noise, low, high, ks, _, tau = row[2:8]
        values = np.sort(row[8:][row[8:] <= tau])
        signal = row[8:].size - values.size
        # Its matrix is divided by the longer side, and its values are eigenvalues.
        law = MarchenkoPasturDistribution(ratio=(m - signal) / (n - signal), sigma=noise * np.sqrt(n - signal))
        edges = np.sqrt([law.lambda_minus, law.lambda_plus])
        mass = np.array([float(law.cdf(value**2)) for value in values])
        index = np.arange(values.size)
        theirs = max(np.max((index + 1) / values.size - mass), np.max(mass - index / values.size))
        print(f"| {key} | {low:.5g}, {high:.5g} | {edges[0]:.5g}, {edges[1]:.5g} | {ks:.4f} | {theirs:.4f} |")


def weightwatcher(spectra: Path) -> None:
    """WeightWatcher's fit of noise, upper edge and spikes to the same eigenvalues."""
    import logging

    from weightwatcher import WeightWatcher  # type: ignore[import-not-found]

    watcher = WeightWatcher(log_level=logging.ERROR)
    print(
        "| update | values beyond the edge, deltamend | spikes, WeightWatcher | edge, deltamend | edge, WeightWatcher |"
    )
    print("|---|---|---|---|---|")
    for key, row in np.load(spectra).items():
        m, n = sorted(row[:2])
        evals = np.sort(row[8:] ** 2) / n
        # rescale divides by the mean eigenvalue, which the fit's starting point needs.
        found = watcher.mp_fit(
            evals=evals, N=n, M=m, rf=1, layer_name=key, layer_id=0, plot_id=0, plot=False, savefig=False, savedir="",
            color="blue", hist_alpha=0.25, rescale=True, orig_evals=evals,
        )  # fmt: skip
        spikes, sigma = found[0], found[1]
        scale = np.sqrt(np.sum(evals) / evals.size)
        edge = sigma * scale * (np.sqrt(n) + np.sqrt(m))
        print(f"| {key} | {int(row[6])} of {row[8:].size} | {int(spikes)} | {row[4]:.4g} | {edge:.4g} |")


def main() -> None:
    """Run the step that is named."""
    parser = script_parser(__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    writing = steps.add_parser("write", help="write the singular values of a few updates")
    writing.add_argument("base", type=Path, help="folder of the base model")
    writing.add_argument("finetuned", nargs="+", type=Path, help="folders of fine-tuned models")
    for name in ("scikit-rmt", "weightwatcher"):
        steps.add_parser(name, help="print what this package says of them")
    for step in steps.choices.values():
        step.add_argument("spectra", type=Path, help="the file of singular values")
    given = parser.parse_args()
    match given.step:
        case "write":
            write(given.base, given.finetuned, given.spectra)
        case "scikit-rmt":
            scikit_rmt(given.spectra)
        case _:
            weightwatcher(given.spectra)


if __name__ == "__main__":
    main()
