"""Tensors of torch as numpy arrays and back, without a copy where there is none to make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.matrices.buffers import Array

if TYPE_CHECKING:
    # Its import is slow, and a repair of folders does not need it. Whoever passes tensors has imported it already.
    import torch


def numpy_array(tensor: torch.Tensor) -> Array:
    """Convert a tensor to a numpy array. numpy has no bfloat16, so such values are passed as bits to the type of ml_dtypes."""
    import torch

    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.uint16).numpy().view(NUMPY_DTYPES["BF16"])
    return plain.numpy()


def torch_tensor(array: Array) -> torch.Tensor:
    """Convert a numpy array to a tensor on the CPU; the inverse of `numpy_array`."""
    import torch

    if array.dtype == NUMPY_DTYPES["BF16"]:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
