from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, kurtosis

from deltamend.spectrum.entry_tests import EntrySums, EntryTests

Array = npt.NDArray[np.float64]
SHAPE = (80, 200)


def examined(matrix: Array, rows: int = 10_000) -> EntryTests:
    sums = EntrySums((matrix.shape[0], matrix.shape[1]), float(np.sqrt(np.mean(matrix**2))))
    for start in range(0, matrix.shape[0], rows):
        sums.add(matrix[start : start + rows], start, 0)
    return sums.tests()


def p_values(found: EntryTests) -> dict[str, float]:
    return {
        "rows": found.rows.p,
        "columns": found.columns.p,
        "neighbouring rows": found.neighbouring_rows.p,
        "neighbouring columns": found.neighbouring_columns.p,
        "kurtosis": found.kurtosis_p,
    }


def test_p_values_of_noise_are_uniform() -> None:
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    for _ in range(400):
        for name, p in p_values(examined(random.standard_normal(SHAPE))).items():
            found.setdefault(name, []).append(p)
    for name, values in found.items():
        assert kstest(values, "uniform").pvalue > 0.005, name


@pytest.mark.parametrize("transposed", [False, True])
def test_each_violation_is_seen_by_its_own_test(transposed: bool) -> None:
    random = np.random.default_rng(1)
    noise = random.standard_normal(SHAPE)
    smooth = noise.copy()
    for index in range(1, SHAPE[0]):
        smooth[index] += 0.3 * smooth[index - 1]
    side = "columns" if transposed else "rows"
    planted = {side: noise * np.linspace(0.7, 1.3, SHAPE[0])[:, None], f"neighbouring {side}": smooth}
    planted["kurtosis"] = random.standard_t(3.0, SHAPE)
    for name, matrix in planted.items():
        assert p_values(examined(matrix.T if transposed else matrix))[name] < 1e-4, name


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_the_parts_may_be_cut_anywhere(m: int, n: int, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((m, n)) * random.integers(0, 2, (m, n)) + np.eye(m, n)
    whole, cut = examined(matrix), examined(matrix, rows)
    assert cut.zeros == whole.zeros == pytest.approx(np.mean(matrix == 0.0))
    assert cut.kurtosis == pytest.approx(whole.kurtosis, rel=1e-9, abs=1e-9)
    assert cut.rows.p == pytest.approx(whole.rows.p, rel=1e-6)
    assert cut.columns.variation == pytest.approx(whole.columns.variation, rel=1e-6, abs=1e-9)


def test_numbers_are_those_of_numpy() -> None:
    matrix = np.random.default_rng(2).standard_normal(SHAPE)
    matrix -= matrix.mean()
    found = examined(matrix)
    assert found.kurtosis == pytest.approx(kurtosis(matrix, axis=None))
    variances = np.mean(matrix**2, axis=1)
    levels = (np.arange(33) + 0.5) / 33
    assert found.rows.quantiles == pytest.approx(np.quantile(variances / variances.mean(), levels))
    norms = np.linalg.norm(matrix[1:]) ** 2
    correlation = np.sum(matrix[1:] * matrix[:-1]) / norms
    assert found.neighbouring_rows.correlation == pytest.approx(correlation)


def test_entries_that_differ_in_sign_alone_have_equal_variances() -> None:
    signs = np.sign(np.random.default_rng(3).standard_normal((30, 40)))
    found = examined(signs)
    assert (found.rows.variation, found.rows.p) == (0.0, 1.0)
    assert found.kurtosis == pytest.approx(-2.0)
