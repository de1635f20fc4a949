"""A tensor of several matrices: each is repaired by itself, the rest is copied, and one record sums up the parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deltamend.inputs.pairing import Submatrix
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.update_walk import MatrixItem
from deltamend.matrices.views import MemoryMatrix
from deltamend.methods.method import Place
from deltamend.methods.registry import get_method
from deltamend.repairing.tensor_parts import job_for, job_of_part, repair_parts
from tests.matrices.made_up import pair_of_shape
from tests.reference import dg_hard
from tests.repairing.array_sink import ArraySink

FIRST = Submatrix("[a]", ((0, 30),), ((0, 30),))
SECOND = Submatrix("[b]", ((40, 60), (30, 35)), ((40, 60), (30, 35)), (3, 20))


def made() -> tuple[np.ndarray, np.ndarray]:
    """70 × 20, with a signal of rank 1 in each part."""
    drawn = np.random.default_rng(0)
    base = drawn.standard_normal((70, 20)).astype(np.float32)
    update = 1e-2 * drawn.standard_normal((70, 20)).astype(np.float32)
    update += np.outer(drawn.standard_normal(70), drawn.standard_normal(20)).astype(np.float32)
    return base, base + update


def repaired(parts: tuple[Submatrix, ...], method: str, **parameters: Any) -> tuple[np.ndarray, Any, Any]:
    base, finetuned = made()
    pair, sink = pair_of_shape("w", (70, 20), parts=parts), ArraySink((70, 20))
    job = job_for(MatrixItem(pair), get_method(method, parameters), "cpu")
    sides = MemoryMatrix(base), MemoryMatrix(finetuned)
    done, records = repair_parts(sides, pair, job, sink, Buffers())
    return sink.array, done, records


def test_each_part_is_filtered_by_itself_and_the_rest_is_as_fine_tuned() -> None:
    base, finetuned = made()
    written, done, records = repaired((FIRST, SECOND), "dg-hard")
    expected = finetuned.astype(np.float64)
    norms = []
    for rows, columns in ((range(30), range(20)), ([*range(40, 60), *range(30, 35)], range(3, 20))):
        place = np.ix_(list(rows), list(columns))
        kept, rank = dg_hard(finetuned[place].astype(np.float64) - base[place])
        assert rank == 1
        expected[place] = base[place] + kept
        norms.append(np.linalg.norm(kept))
    # The parts of a real tensor cover all columns of their rows; what these leave of them is not written.
    expected[np.ix_([*range(40, 60), *range(30, 35)], range(3))] = np.nan
    np.testing.assert_allclose(written, expected, atol=2e-6)
    untouched = np.ix_([*range(35, 40), *range(60, 70)], range(20))
    np.testing.assert_array_equal(written[untouched], finetuned[untouched])
    assert [(record.label, record.spectrum.rank) for record in records] == [("[a]", 1), ("[b]", 1)]
    assert (done.outcome, done.reason, done.spectrum) == ("filtered", "2 filtered", None)
    assert done.kept_norm == pytest.approx(float(np.linalg.norm(norms)), rel=1e-5)
    assert done.kept_energy == pytest.approx((done.kept_norm / done.delta_norm) ** 2)


def test_a_single_part_is_no_list_of_parts() -> None:
    base, finetuned = made()
    written, done, records = repaired((FIRST,), "revert")
    assert records == ()
    assert done.outcome == "reverted"
    np.testing.assert_array_equal(written, np.concatenate([base[:30], finetuned[30:]]))


def test_shares_are_weighted_by_entries() -> None:
    _, done, records = repaired((FIRST, SECOND), "revert")
    assert [record.unmoved for record in records] == [1.0, 1.0]
    assert (done.unmoved, done.kept_energy, done.realised_error) == (1.0, 0.0, None)
    _, done, records = repaired((FIRST, SECOND), "magnitude", density=0.5)
    weights = [30 * 20, 25 * 17]
    assert done.unmoved == pytest.approx(np.average([record.unmoved for record in records], weights=weights))
    assert done.delta_norm == pytest.approx(np.hypot(*(record.delta_norm for record in records)))


def test_without_parts_the_tensor_is_one_matrix() -> None:
    base, finetuned = made()
    written, done, records = repaired((), "wise-ft", alpha=0.25)
    assert records == ()
    assert done.outcome == "filtered"
    np.testing.assert_allclose(written, base + 0.25 * (finetuned - base), rtol=1e-5, atol=1e-6)


def test_the_job_of_a_part_knows_its_place() -> None:
    pair = pair_of_shape("w", (70, 20), parts=(FIRST, SECOND))
    job = job_for(MatrixItem(pair, SECOND), get_method("dg-hard"), "cpu", surveyed="seen", rounding="stochastic")
    assert (job.name, job.rows, job.place) == ("w[b]", 25, Place("w", SECOND.finetuned_rows, (3, 20)))
    assert (job.surveyed, job.rounding) == ("seen", "stochastic")
    whole = job_for(MatrixItem(pair), get_method("dg-hard"), "cpu", surveyed="seen", rounding="stochastic")
    assert (whole.name, whole.rows, whole.place) == ("w", 70, None)
    assert job_of_part(whole, SECOND) == job
