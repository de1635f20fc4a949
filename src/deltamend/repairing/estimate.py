"""Estimate the time and memory that a repair will take on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from deltamend.inputs.pairing import TensorPair
from deltamend.matrices.delta import BLOCK_ELEMENTS
from deltamend.matrices.update_walk import pair_flops

_WRITE_BYTES_PER_SECOND = 0.4e9  # measured once, while writing to a new file
_RESIDENT_BYTES = 100 << 20  # memory of Python with numpy and scipy imported
_FACTOR_BYTES = 64 << 20  # a piece of a factor in fp64, the same piece rounded, and the difference between them


@dataclass(frozen=True)
class RunEstimate:
    """The time and memory that a run should take on this machine, correct within a factor of about two.

    Attributes:
        seconds: wall-clock time.
        memory_bytes: peak memory of the process.
    """

    seconds: float
    memory_bytes: int


def estimate_run(pairs: Sequence[TensorPair], bytes_to_write: int, workers: int, *, adapter: bool) -> RunEstimate:
    """Estimate time and memory from a quick measurement of this machine's speed in matrix products.

    Args:
        pairs: all tensors of the plan.
        bytes_to_write: size of the output.
        workers: number of tensors worked on at a time.
        adapter: whether the output is an adapter, whose factors need additional memory.
    """
    matrices = [pair for pair in pairs if pair.action == "filter" and pair.is_matrix]
    seconds = sum(map(pair_flops, matrices)) / _flops_per_second() / workers
    seconds += bytes_to_write / _WRITE_BYTES_PER_SECOND
    largest = max(map(_matrix_bytes, matrices), default=0)
    largest += _FACTOR_BYTES if adapter else 0
    return RunEstimate(seconds, _RESIDENT_BYTES + workers * largest)


def _matrix_bytes(pair: TensorPair) -> int:
    """The most memory that one worker needs for a matrix.

    That is one block in fp32 and three square matrices of the shorter side in fp64. A wide matrix that does not fit into a block
    is read in blocks of columns, and then a block of each side is in memory as well.
    """

    def needed(m: int, n: int) -> int:
        blocks = 3 if m < n and m * n > BLOCK_ELEMENTS else 1
        return 4 * blocks * min(m * n, BLOCK_ELEMENTS) + 3 * 8 * min(m, n) ** 2

    return max(needed(*shape) for shape in pair.shapes)


def _flops_per_second(size: int = 768) -> float:
    """Half of the speed that one core reaches in an fp32 matrix product, because a filter does about twice that work."""
    square = np.ones((size, size), dtype=np.float32)
    with threadpool_limits(1):
        square @ square  # the first product starts the library
        started = time.perf_counter()
        square @ square
        return size**3 / (time.perf_counter() - started)
