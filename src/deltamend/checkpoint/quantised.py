"""Recognise weights that are stored quantised, and refuse them: a difference of packed codes is no task vector."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.checkpoint.dtypes import itemsize
from deltamend.errors import CheckpointError

# Names under which quantisers store packed weights or their scales.
PACKED_SUFFIXES = (
    ".qweight", ".qzeros", ".g_idx", ".scales", ".absmax", ".quant_map", ".SCB", ".weight_packed", ".weight_scale",
    ".weight_scale_inv", ".weight_format", ".input_scale", "_blocks", "_scales",
)  # fmt: skip


def is_packed(tensor: StoredTensor) -> bool:
    """Whether a tensor holds packed codes, values that need scales beside them, or such scales."""
    if tensor.name.endswith(PACKED_SUFFIXES) or tensor.dtype.startswith("F8_"):
        return True
    return tensor.dtype in {"U8", "I8"} and len(tensor.shape) >= 2


def refuse_quantised(tensors: Iterable[StoredTensor], where: Path | str) -> None:
    """Refuse tensors that hold packed codes, or values that need scales beside them.

    Args:
        tensors: of a model.
        where: the model, as the error names it.

    Raises:
        CheckpointError: naming the first such tensor.
    """
    for tensor in tensors:
        if is_packed(tensor):
            raise CheckpointError(
                f"{where}: tensor {tensor.name!r} ({tensor.dtype}) belongs to a quantised model; the difference "
                f"of {itemsize(tensor.dtype)}-byte codes is not an update of the weights, so give the unquantised checkpoint"
            )
