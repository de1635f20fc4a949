"""Small unsigned integers, packed into 32-bit words without gaps, the first in the lowest bits."""

from __future__ import annotations

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array


def unpacked_integers(words: Array, bits: int, count: int) -> Array:
    """Unpack integers along the last axis.

    Args:
        words: int32 or uint32, shape (rows, number of words), contiguous; little-endian, as in every checkpoint.
        bits: of an integer: 1 to 8. It may cross the end of a word.
        count: how many integers a row has.

    Returns:
        uint8, shape (rows, count).
    """
    octets = words.view(np.uint8)
    if bits == 8:
        return octets[:, :count]
    if bits in (2, 4):
        # Several numbers a byte: one table look-up finds them all.
        table = (np.arange(256)[:, None] >> np.arange(0, 8, bits)) & (2**bits - 1)
        packed = np.ascontiguousarray(table.astype(np.uint8)).view(f"u{8 // bits}").reshape(-1)
        found: Array = np.take(packed, octets).view(np.uint8)[:, :count]
        return found
    single = np.unpackbits(octets, axis=1, bitorder="little")[:, : count * bits].reshape(-1, count, bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    unpacked: Array = single @ weights
    return unpacked
