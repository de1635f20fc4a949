"""What a run is expected to take on this machine, before anything is read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from deltamend.inputs.pairing import TensorPair
from deltamend.matrices.delta import BLOCK_ELEMENTS
from deltamend.matrices.items import pair_flops

_WRITE_BYTES_PER_SECOND = 0.4e9  # to a fresh file on the machine this was measured on
_RESIDENT_BYTES = 100 << 20  # Python with numpy and scipy loaded
_FACTOR_BYTES = 64 << 20  # a piece of a factor in fp64, rounded, and what the rounding did


@dataclass(frozen=True)
class RunEstimate:
    """What a run is expected to take on this machine, within a factor of about two."""

    seconds: float
    memory_bytes: int


def estimate_run(pairs: Sequence[TensorPair], bytes_to_write: int, workers: int, *, adapter: bool) -> RunEstimate:
    """Expected time and memory, from a quick measurement of this machine's arithmetic.

    Args:
        pairs: all tensors of the plan.
        bytes_to_write: size of the output.
        workers: tensors that are worked on at a time.
        adapter: whether the output is an adapter, whose factors take memory of their own.
    """
    matrices = [pair for pair in pairs if pair.action == "filter" and pair.is_matrix]
    seconds = sum(map(pair_flops, matrices)) / _flops_per_second() / workers
    seconds += bytes_to_write / _WRITE_BYTES_PER_SECOND
    largest = max(map(_matrix_bytes, matrices), default=0)
    largest += _FACTOR_BYTES if adapter else 0
    return RunEstimate(seconds, _RESIDENT_BYTES + workers * largest)


def _matrix_bytes(pair: TensorPair) -> int:
    """Most memory one worker needs for a matrix: a block in fp32, and three squares of the shorter side in fp64.

    A wide matrix that is cut is read in columns, for which a block of both sides and of the output are held as well.
    """

    def needed(m: int, n: int) -> int:
        blocks = 3 if m < n and m * n > BLOCK_ELEMENTS else 1
        return 4 * blocks * min(m * n, BLOCK_ELEMENTS) + 3 * 8 * min(m, n) ** 2

    return max(needed(*shape) for shape in pair.shapes)


def _flops_per_second(size: int = 768) -> float:
    """What one core does in an fp32 matrix product, halved: a filter does about two passes' worth of work."""
    square = np.ones((size, size), dtype=np.float32)
    with threadpool_limits(1):
        square @ square  # the first product starts the library
        started = time.perf_counter()
        square @ square
        return size**3 / (time.perf_counter() - started)
