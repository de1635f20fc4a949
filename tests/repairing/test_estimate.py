from __future__ import annotations

import pytest

from deltamend.matrices import delta as delta_module
from deltamend.repairing import estimate as module
from deltamend.repairing.estimate import estimate_run
from tests.matrices.made_up import pair_of_shape

MIB = 1 << 20


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One core does 10⁹ operations a second."""
    monkeypatch.setattr(module, "_flops_per_second", lambda: 1e9)


def test_time_is_that_of_the_matrices_shared_by_the_workers_and_of_writing() -> None:
    pairs = [pair_of_shape("a", (1000, 500)), pair_of_shape("b", (500, 1000)), pair_of_shape("norm", (1000,))]
    one = estimate_run(pairs, 0, 1, adapter=False).seconds
    assert one == pytest.approx(2 * (2 * 1000 * 500 * 500) / 1e9)
    assert estimate_run(pairs, 0, 4, adapter=False).seconds == pytest.approx(one / 4)
    written = estimate_run(pairs, 800_000_000, 4, adapter=False).seconds
    assert written == pytest.approx(one / 4 + 2.0)  # 0.4 GB a second, however many workers


def test_memory_is_that_of_the_largest_matrix_for_each_worker() -> None:
    pairs = [pair_of_shape("small", (64, 64)), pair_of_shape("large", (1024, 512))]
    resident = estimate_run([], 0, 8, adapter=False).memory_bytes
    assert resident == 100 * MIB
    largest = 4 * 1024 * 512 + 3 * 8 * 512**2
    for workers in (1, 2, 8):
        assert estimate_run(pairs, 0, workers, adapter=False).memory_bytes == resident + workers * largest
    with_factors = estimate_run(pairs, 0, 2, adapter=True).memory_bytes
    assert with_factors == resident + 2 * (largest + 64 * MIB)


def test_memory_does_not_grow_with_the_longer_side() -> None:
    block = 4 * delta_module.BLOCK_ELEMENTS
    tall = estimate_run([pair_of_shape("tall", (1 << 22, 1024))], 0, 1, adapter=False).memory_bytes
    taller = estimate_run([pair_of_shape("taller", (1 << 24, 1024))], 0, 1, adapter=False).memory_bytes
    assert tall == taller == 100 * MIB + block + 3 * 8 * 1024**2
    wide = estimate_run([pair_of_shape("wide", (1024, 1 << 22))], 0, 1, adapter=False).memory_bytes
    assert wide == tall + 2 * block  # a block of both sides is held, too


def test_what_is_kept_costs_nothing_but_writing() -> None:
    kept = [pair_of_shape("kept", (1000, 1000), action="keep"), pair_of_shape("norm", (1000,))]
    assert estimate_run(kept, 0, 1, adapter=False) == estimate_run([], 0, 1, adapter=False)


def test_the_speed_of_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert module._flops_per_second(64) > 0
