"""Random bits are uniform, and depend on seed, name and position alone."""

from __future__ import annotations

import numpy as np

from deltamend.methods.elementwise import Tile
from deltamend.methods.random_bits import RandomBits
from tests.methods.deltas import NAME


def test_random_bits_depend_on_seed_name_and_position_alone() -> None:
    shape = (13, 29)
    bits = RandomBits(5, NAME, shape)
    whole = bits.at(Tile(0, 0, np.zeros(shape)))
    for row, column, height, width in ((0, 0, 1, 29), (4, 0, 9, 29), (0, 7, 13, 5), (3, 28, 2, 1)):
        part = bits.at(Tile(row, column, np.zeros((height, width))))
        assert np.array_equal(part, whole[row : row + height, column : column + width])
    assert not np.array_equal(whole, RandomBits(6, NAME, shape).at(Tile(0, 0, np.zeros(shape))))
    assert not np.array_equal(whole, RandomBits(5, NAME + "x", shape).at(Tile(0, 0, np.zeros(shape))))


def test_random_bits_are_uniform() -> None:
    values = RandomBits(0, NAME, (400, 500)).at(Tile(0, 0, np.zeros((400, 500)))).astype(np.float64).ravel() / 2.0**32
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    assert np.sum((counts - 10_000) ** 2 / 10_000) < 43.8  # the 99.9% quantile of χ² with 19 degrees of freedom
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01
