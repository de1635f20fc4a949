"""A small training of the benchmark's toy."""

from __future__ import annotations

import pytest

from benchmarks.recipes.toy import Example, Network, network, task


@pytest.fixture
def model() -> Network:
    """A network with random weights, whose outputs depend on every weight."""
    return network(5)


@pytest.fixture(scope="package")
def old() -> list[Example]:
    """A few examples of the first task."""
    return task(0, 12, permuted=False)


@pytest.fixture(scope="package")
def new() -> list[Example]:
    """Examples of the second task."""
    return task(0, 60, permuted=True)
