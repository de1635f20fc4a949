"""DG-Hard written down plainly in float64 numpy: what every fast route is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from scipy.integrate import quad
from scipy.optimize import brentq

Array = npt.NDArray[np.float64]


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by safetensors' own reader."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    return tensors


def threshold_factor(beta: float) -> float:
    """ω(β) of arXiv 1305.5870, with the Marchenko–Pastur median found by quadrature."""
    low, high = (1 - np.sqrt(beta)) ** 2, (1 + np.sqrt(beta)) ** 2

    def density(x: float) -> float:
        return float(np.sqrt(max(0.0, (high - x) * (x - low))) / (2 * np.pi * beta * x))

    median = brentq(lambda x: quad(density, low, x, limit=200)[0] - 0.5, low + 1e-12, high)
    coefficient = np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1)))
    return float(coefficient / np.sqrt(median))


def dg_hard(delta: Array) -> tuple[Array, int]:
    """Δ* and its rank, by the full SVD."""
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    beta = min(delta.shape) / max(delta.shape)
    rank = int((values > threshold_factor(beta) * np.median(values)).sum())
    return (left[:, :rank] * values[:rank]) @ right[:rank], rank
