"""Which names and shapes a tensor may have. Every reader and the writer follow these rules, so that OUT can always be read."""

from __future__ import annotations

import math
from collections.abc import Sequence

METADATA_NAME = "__metadata__"
"""What the header of a safetensors file calls its metadata, and so no tensor can be called."""
MAX_DIMENSIONS = 16
_MAX_BYTES = 2**63


def fault_of_tensor(name: object, shape: Sequence[object], itemsize: int) -> str:
    """What is wrong with the name or the shape of a tensor, as the end of a sentence; "" where nothing is.

    Args:
        name: should be printable text, as names reach terminals and pages.
        shape: should be at most 16 sizes.
        itemsize: bytes of an entry. The bytes of all entries have to be fewer than 2⁶³, also when sizes of 0 count as 1, as
            readers in other languages multiply them one by one.
    """
    if not isinstance(name, str) or not name or not name.isprintable():
        return "its name is empty or holds control characters"
    if name == METADATA_NAME:
        return "a safetensors file keeps this name for its metadata"
    if len(shape) > MAX_DIMENSIONS:
        return f"it has {len(shape)} dimensions, and at most {MAX_DIMENSIONS} can be read"
    sizes = [size for size in shape if type(size) is int and 0 <= size < _MAX_BYTES]
    if len(sizes) != len(shape):
        return "its shape is not a list of sizes"
    if math.prod(max(1, size) for size in sizes) * itemsize >= _MAX_BYTES:
        return "its sizes multiply to more bytes than a file can have"
    return ""
