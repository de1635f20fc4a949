"""One matrix and an update of it, and what a method keeps of the update."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import deltamend

Array = npt.NDArray[np.float64]


NAME = "model.layers.0.mlp.up_proj.weight"


def matrices(shape: tuple[int, int] = (40, 60), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Base and update; the sum of both has the update as its exact difference in float64."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    return base, 1e-2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def kept(method: str, base: torch.Tensor, update: torch.Tensor, name: str = NAME, **parameters: Any) -> Array:
    """Δ* of one matrix."""
    out = deltamend.repair_state_dict({name: base}, {name: base + update}, method=method, parameters=parameters)
    result: Array = (out.tensors[name] - base).numpy()
    return result
