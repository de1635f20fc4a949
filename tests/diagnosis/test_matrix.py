from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import kstest, kurtosis

from deltamend.diagnosis.controls import Sample
from deltamend.diagnosis.matrix import Question, diagnose_matrix, module_of
from deltamend.diagnosis.records import MatrixDiagnosis
from deltamend.errors import FilterError
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.views import MemoryMatrix
from deltamend.spectrum.marchenko_pastur import MarchenkoPasturSingular
from deltamend.spectrum.noise import rounding_variance
from tests.reference import threshold_factor

pytestmark = pytest.mark.usefixtures("few_draws")
Array = npt.NDArray[np.float64]
BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)
NAME = "model.layers.3.mlp.up_proj.weight"


def weights(shape: tuple[int, int] = (96, 160), seed: int = 9) -> Array:
    return 0.02 * np.random.default_rng(seed).standard_normal(shape)


def signal(shape: tuple[int, int], rank: int, seed: int = 4) -> Array:
    random = np.random.default_rng(seed)
    return random.standard_normal((shape[0], rank)) @ random.standard_normal((rank, shape[1]))


def noise(shape: tuple[int, int], seed: int = 5) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def correlated(shape: tuple[int, int]) -> Array:
    rows = noise(shape)
    for index in range(1, shape[0]):
        rows[index] = 0.8 * rows[index - 1] + 0.6 * rows[index]
    return rows


def diagnosed(
    delta: Array, dtype: np.dtype[Any] = F32, written: np.dtype[Any] | None = None, *, whole: bool = False
) -> MatrixDiagnosis:
    base = weights((delta.shape[0], delta.shape[1])).astype(BF16)
    finetuned = (base.astype(np.float64) + delta).astype(dtype)
    question = Question(NAME, delta.shape[0], written or dtype, whole)
    return diagnose_matrix(MemoryMatrix(base), MemoryMatrix(finetuned), question, Buffers())


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (120, 120)])
def test_numbers_are_those_of_a_full_svd_in_float64(shape: tuple[int, int]) -> None:
    planted = 1e-3 * noise(shape) + 4e-4 * signal(shape, 5)
    found = diagnosed(planted, whole=True)
    base = weights(shape).astype(BF16).astype(np.float64)
    stored = (base + planted).astype(np.float32)
    delta = stored.astype(np.float64) - base
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    m, n = sorted(shape)
    tau = threshold_factor(m / n) * float(np.median(values))
    rank = int((values > tau).sum())
    spectrum, bulk, entries, rounding = found.spectrum, found.bulk, found.entries, found.rounding
    assert spectrum is not None
    assert bulk is not None
    assert entries is not None
    assert rounding is not None
    assert spectrum.values == pytest.approx(values, abs=2e-5 * values[0])
    assert (spectrum.largest, spectrum.median) == pytest.approx((values[0], float(np.median(values))), rel=1e-5)
    assert spectrum.stable_rank == pytest.approx(np.sum(values**2) / values[0] ** 2, rel=1e-5)
    assert spectrum.threshold == pytest.approx(tau, rel=1e-5)
    assert (spectrum.rank, spectrum.ranks["dg-hard"]) == (rank, rank)
    assert spectrum.energy == pytest.approx(np.sum(values[:rank] ** 2) / np.sum(values**2), rel=1e-5)
    assert found.norm == pytest.approx(np.linalg.norm(delta), rel=1e-5)
    assert sum(spectrum.histogram.counts) + spectrum.histogram.above == m
    law = MarchenkoPasturSingular((m - rank) / (n - rank))
    below = values[rank:]
    scale = float(np.median(below)) / law.median()
    assert bulk.noise == pytest.approx(scale / math.sqrt(n - rank), rel=1e-5)
    assert bulk.ks == pytest.approx(kstest(below / scale, law.cdf).statistic, abs=2e-3)
    assert entries.kurtosis == pytest.approx(kurtosis(delta - delta.mean(), axis=None), abs=0.02)
    assert entries.zeros == np.mean(delta == 0.0)
    assert rounding.floor == pytest.approx(math.sqrt(rounding_variance(stored, "float32").mean()), rel=1e-5)
    star = (left[:, :rank] * values[:rank]) @ right[:rank]
    lost = np.linalg.norm((base + star).astype(np.float32) - base - star) / np.linalg.norm(star)
    assert rounding.lost == pytest.approx(lost, rel=0.1)


@pytest.mark.slow
def test_overlap_and_intruders_are_those_of_their_definitions() -> None:
    shape = (100, 200)
    base = weights(shape).astype(BF16).astype(np.float64)
    base_left = np.linalg.svd(base)[0]
    planted = 1.2 * np.outer(base_left[:, 2], noise((1, 200))[0] / math.sqrt(200)) + 3e-4 * noise(shape)
    stranger = base_left[:, 80:] @ noise((20, 1))
    planted += 4.0 * np.outer(stranger / np.linalg.norm(stranger), noise((1, 200), 8)[0] / math.sqrt(200))
    found = diagnosed(planted).base
    delta = (base + planted).astype(np.float32) - base
    left, values, _ = np.linalg.svd(delta, full_matrices=False)
    assert found is not None
    assert (found.directions, found.by_chance) == (10, 0.1)
    inside = np.sum((base_left[:, :10].T @ (left[:, :2] * values[:2])) ** 2) / np.sum(values[:2] ** 2)
    assert found.overlap == pytest.approx(inside, abs=1e-3)
    assert found.relative_norm == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(base), rel=1e-5)
    cosines = np.abs(base_left[:, :50].T @ np.linalg.svd(base + delta)[0][:, :10]).max(axis=0)
    assert found.intruders == int((cosines < 0.5).sum()) >= 1


@pytest.mark.parametrize(
    ("verdict", "delta", "dtype"),
    [
        ("almost unchanged", np.zeros((96, 160)), F32),
        ("almost unchanged", 1e-7 * noise((96, 160)), F32),
        ("low-rank by construction", 1e-3 * signal((96, 160), 4), F32),
        ("rounding-dominated", 1e-3 * signal((96, 160), 1) + 2e-5 * noise((96, 160)), BF16),
        ("noise-like bulk", 1e-3 * noise((96, 160)), F32),
        ("noise-like bulk", 1e-3 * noise((96, 160)) + 1e-3 * signal((96, 160), 3), F32),
        ("structured residual", 1e-3 * correlated((96, 160)), F32),
        ("too small to tell", 1e-3 * noise((12, 40)), F32),
    ],
)
def test_planted_updates_get_their_verdict(verdict: str, delta: Array, dtype: np.dtype[Any]) -> None:
    found = diagnosed(delta, dtype)
    assert found.verdict == verdict, found.reasons
    assert found.reasons or verdict == "too small to tell"


def test_an_adapter_that_is_given_as_one_keeps_its_whole_update() -> None:
    base = weights().astype(np.float32)
    finetuned = (base + 1e-3 * signal((96, 160), 4)).astype(np.float32)
    question = Question(NAME, 96, F32, update_rank=4)
    found = diagnose_matrix(MemoryMatrix(base), MemoryMatrix(finetuned), question, Buffers())
    assert found.spectrum is not None
    assert (found.spectrum.threshold, found.spectrum.rank, found.spectrum.energy) == (None, 96, 1.0)
    assert (found.spectrum.numerical_rank, found.bulk) == (4, None)
    assert found.verdict == "low-rank by construction"
    assert found.reasons[0] == "Δ is a LoRA adapter of rank 4."


def test_a_base_of_zeros_is_compared_with_nothing() -> None:
    delta = 1e-3 * noise((40, 60))
    zeros = MemoryMatrix(np.zeros((40, 60), np.float32))
    found = diagnose_matrix(zeros, MemoryMatrix(delta.astype(np.float32)), Question(NAME, 40, F32), Buffers())
    assert found.base is not None
    assert (found.base.relative_norm, found.base.overlap, found.base.intruders) == (None, None, None)
    assert found.verdict == "noise-like bulk"


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (3, 3)])
def test_tiny_matrices_are_no_hindrance(shape: tuple[int, int]) -> None:
    found = diagnosed(1e-3 * noise(shape))
    assert found.verdict in ("too small to tell", "low-rank by construction")


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1e15])
def test_updates_of_any_size_are_measured(size: float) -> None:
    delta = (size * noise((40, 60))).astype(np.float32)
    zeros = MemoryMatrix(np.zeros((40, 60), np.float32))
    found = diagnose_matrix(zeros, MemoryMatrix(delta), Question(NAME, 40, F32), Buffers())
    assert found.entries is not None
    assert found.entries.kurtosis == pytest.approx(kurtosis(delta.astype(np.float64), axis=None), abs=0.01)
    assert found.bulk is not None
    assert found.bulk.noise == pytest.approx(size, rel=0.05)


def test_a_damaged_tensor_is_named() -> None:
    delta = noise((20, 30))
    delta[3, 4] = math.nan
    with pytest.raises(FilterError, match=r"up_proj.weight' holds NaN or Inf in FINETUNED"):
        diagnosed(delta)


def test_the_same_name_gives_the_same_controls_and_another_name_others() -> None:
    first, second = (diagnosed(1e-3 * noise((96, 160))).controls for _ in range(2))
    assert first == second
    assert first is not None
    assert first.shuffled is not None
    assert first.shuffled.ks_p > 0.01


@pytest.mark.parametrize("cut", ["rows", "columns"])
def test_a_sample_of_a_large_matrix_is_filled_from_its_blocks(cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltamend.diagnosis.controls.ENTRIES", 600)
    matrix = noise((60, 90)).astype(np.float32)
    sample = Sample.of_shape((60, 90), F32, np.random.default_rng(0))
    for start in range(0, 90, 7):
        span = slice(start, start + 7)
        if cut == "rows":
            sample.take(matrix[span], start, 0)
        else:
            sample.take(matrix[:, span], 0, start)
    assert sample.values.shape == (20, 30)
    assert np.array_equal(sample.values, matrix[np.ix_(sample.rows, sample.columns)])
    random = np.random.default_rng(1)
    assert np.array_equal(np.sort(sample.shuffled(random).ravel()), np.sort(sample.values.ravel()))
    assert np.array_equal(np.abs(sample.flipped(random)), np.abs(sample.values))


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("model.layers.12.self_attn.q_proj.weight", "self_attn.q_proj"),
        ("transformer.h.0.mlp.c_fc.weight", "mlp.c_fc"),
        ("model.layers.3.mlp.experts.7.up_proj.weight", "mlp.experts.7.up_proj"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_a_module_is_named_without_its_layer(name: str, module: str) -> None:
    assert module_of(name) == module
