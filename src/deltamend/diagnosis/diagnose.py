"""Diagnose a whole update: every matrix both checkpoints hold, one at a time in each worker."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.checkpoint.open import Checkpoint, open_checkpoint
from deltamend.checkpoint.pairing import TensorPair, pair_tensors
from deltamend.delta import Buffers, StoredMatrix
from deltamend.diagnosis.matrix import Question, diagnose_matrix
from deltamend.diagnosis.records import Diagnosis, MatrixDiagnosis
from deltamend.diagnosis.verdict import summary
from deltamend.errors import UsageError
from deltamend.plan import out_dtype_name, pair_flops
from deltamend.repair import Progress
from deltamend.threads import one_thread_each


def diagnose(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    *,
    include: str | None = None,
    exclude: str | None = None,
    out_dtype: str | None = None,
    values: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Measure what an update looks like, and say whether a spectral threshold can be trusted on it.

    Nothing is written. Memory does not grow with the model: each worker holds one delta of at most `delta.BLOCK_ELEMENTS`
    entries and a few squares of a matrix's shorter side. The same inputs give the same numbers with any number of workers.

    Args:
        base: folder of the checkpoint fine-tuning started from.
        finetuned: folder of its descendant.
        include: regular expression; only matrices whose name it finds are diagnosed.
        exclude: regular expression; matrices whose name it finds are left out.
        out_dtype: bf16, fp16 or fp32: what the realised delta is predicted for; None for the dtype each tensor has.
        values: whether the records hold every singular value.
        workers: matrices worked on at a time; None for one a core.
        progress: called as work ends.

    Raises:
        CheckpointError: an input cannot be read, or is quantised.
        PairingError: the inputs do not belong together.
        UsageError: `out_dtype`, `include` or `exclude` means nothing, or no matrix is left.
        FilterError: NaN or Inf in a tensor, or no algorithm gave a checked answer.
    """
    started = time.perf_counter()
    written = out_dtype_name(out_dtype)
    with open_checkpoint(base) as ours, open_checkpoint(finetuned) as theirs:
        pairing = pair_tensors(
            ours.tensors, theirs.tensors, (ours.config, theirs.config), include=include, exclude=exclude
        )
        pairs = [pair for pair in pairing.pairs if pair.action == "filter"]
        if not pairs:
            raise UsageError("no matrix is left to diagnose; widen --include or --exclude")
        run = _Diagnosing(ours, theirs, written, values)
        order = sorted(pairs, key=lambda pair: (-pair_flops(pair), pair.name))
        found: dict[str, MatrixDiagnosis] = {}
        with one_thread_each(), ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as executor:
            try:
                for done, matrix in enumerate(executor.map(run.one, order), start=1):
                    found[matrix.name] = matrix
                    if progress is not None:
                        progress(matrix.name, done / len(order))
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise
    matrices = tuple(found[pair.name] for pair in pairs)
    verdict, sentences, commands = summary(matrices)
    return Diagnosis(
        base=Path(base).name,
        finetuned=Path(finetuned).name,
        written=out_dtype or "as stored",
        matrices=matrices,
        left_out=dict(Counter(pair.reason for pair in pairing.pairs if pair.action == "keep")),
        verdict=verdict,
        sentences=sentences,
        commands=commands,
        seconds=time.perf_counter() - started,
    )


class _Diagnosing:
    """The workers of one diagnosis."""

    def __init__(self, base: Checkpoint, finetuned: Checkpoint, written: str | None, values: bool) -> None:
        self._base, self._finetuned, self._written, self._values = base, finetuned, written, values
        self._local = threading.local()

    def one(self, pair: TensorPair) -> MatrixDiagnosis:
        """One matrix, in the memory of the calling thread."""
        if pair.base is None:
            raise AssertionError(f"{pair.name} has no base")
        if not hasattr(self._local, "buffers"):
            self._local.buffers = Buffers()
        buffers: Buffers = self._local.buffers
        return diagnose_matrix(
            StoredMatrix(self._base, pair.base, buffers, "base"),
            StoredMatrix(self._finetuned, pair.finetuned, buffers, "finetuned"),
            Question(pair.name, pair.rows, NUMPY_DTYPES[self._written or pair.finetuned.dtype], self._values),
            buffers,
        )
