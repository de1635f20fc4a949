"""A check of a calibration: that no tensor holds NaN or infinity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from deltamend.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def refuse_not_finite(tensors: Iterable[tuple[str, torch.Tensor]], what: str) -> None:
    """Refuse tensors that hold NaN or infinity.

    Args:
        tensors: by name.
        what: the beginning of the error, such as "MODEL: the weights of", which the name of the tensor follows.

    Raises:
        CheckpointError: naming the first tensor that holds one.
    """
    for name, tensor in tensors:
        if not tensor.isfinite().all():
            raise CheckpointError(f"{what} {name!r} hold NaN or Inf; give an undamaged checkpoint")
