"""One BLAS thread, and one noisy matrix with its exact singular values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits

from deltamend.spectrum.blocks import FloatArray
from tests.spectrum.matrices import singular_values, spiked


@pytest.fixture(autouse=True)
def _one_blas_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def delta() -> FloatArray:
    return spiked((901, 1000), 12)  # 901 is no multiple of the band width


@pytest.fixture(scope="module")
def exact(delta: FloatArray) -> FloatArray:
    return singular_values(delta)
