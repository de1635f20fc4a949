"""Weights of bitsandbytes in 8 bits (LLM.int8).

The format (bitsandbytes, `int8_vectorwise_dequant`; Dettmers et al., arXiv 2208.07339): `X.weight` holds signed codes of 8
bits and `X.SCB` the greatest magnitude of each row; an entry is code · SCB[row] / 127, computed in fp32. The outliers that
LLM.int8 treats apart are those of activations; all of the weight is stored in codes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deltamend.checkpoint.architecture import is_conv1d, leaf_of
from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.inputs.quantised_formats.packed_weight import ByRows, PackedWeight, fault, part, whole
from deltamend.inputs.quantised_formats.scaled_codes import ScaledCodes
from deltamend.inputs.quantised_formats.transposed import Transposed

_SCALES, _LAYOUT = ".SCB", ".weight_format"
_PER_CODE = np.float32(7.874015718698502e-3)
"""1/127, as bitsandbytes writes it."""


def bitsandbytes_8bit_weights(checkpoint: Checkpoint) -> Iterator[PackedWeight]:
    """Find the weights of LLM.int8.

    Raises:
        CheckpointError: the codes of a weight are missing, do not fit their scales, or are laid out for one kind of GPU.
    """
    held = checkpoint.tensors
    for name, scales in list(held.items()):
        if not name.endswith(_SCALES):
            continue
        module = name.removesuffix(_SCALES)
        codes = part(checkpoint, held, scales, f"{module}.weight", {"I8"})
        layout = held.get(module + _LAYOUT)
        if layout is not None and (layout.elements != 1 or int(whole(checkpoint, layout).reshape(-1)[0]) != 0):
            raise fault(checkpoint, layout, "says that the codes are not stored row by row")
        if len(codes.shape) != 2 or scales.dtype != "F32" or scales.elements != codes.shape[0]:
            raise fault(
                checkpoint,
                codes,
                f"has shape {list(codes.shape)} beside scales of {list(scales.shape)}, which do not fit",
            )
        values = ByRows(ScaledCodes(checkpoint, codes, scales, None, (1, codes.shape[1]), _PER_CODE))
        shape = (codes.shape[0], codes.shape[1])
        if is_conv1d(checkpoint.config, leaf_of(module)):
            values, shape = ByRows(Transposed(values, shape)), shape[::-1]
        names = frozenset({name, codes.name, module + _LAYOUT})
        yield PackedWeight(codes.name, shape, codes, "int8", values, names)
