"""A matrix with a planted update of low rank in noise, and what a method keeps of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import deltamend

Array = npt.NDArray[np.float64]


NAME = "layers.0.weight"


SHAPES = [(60, 40), (40, 60), (50, 50)]


def pair(shape: tuple[int, int], *, noise: float = 1e-2) -> tuple[Array, Array]:
    """A base, and an update of rank 2 in noise."""
    generator = np.random.default_rng(7)
    signal = generator.normal(size=(shape[0], 2)) @ generator.normal(size=(2, shape[1]))
    return generator.normal(size=shape), 0.05 * signal + noise * generator.normal(size=shape)


def kept(method: str, base: Array, update: Array, **parameters: Any) -> Array:
    """Δ* of one float64 matrix."""
    sides = [{NAME: torch.from_numpy(matrix)} for matrix in (base, base + update)]
    out = deltamend.repair_state_dict(sides[0], sides[1], method=method, parameters=parameters)
    result: Array = out.tensors[NAME].numpy() - base
    return result


def rebuilt(matrix: Array, values: Array) -> Array:
    """The matrix with other singular values."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    result: Array = (left * values) @ right
    return result


def hard(matrix: Array, threshold: float) -> Array:
    values = np.linalg.svd(matrix, compute_uv=False)
    return rebuilt(matrix, np.where(values > threshold, values, 0.0))
