"""Diagnose a whole update: every matrix both checkpoints hold, one at a time in each worker."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.choosing.compare_methods import Item, item_name
from deltamend.diagnosis.matrix import Question, diagnose_matrix
from deltamend.diagnosis.records import Diagnosis, MatrixDiagnosis
from deltamend.diagnosis.verdict import summary
from deltamend.errors import UsageError
from deltamend.inputs.open_models import open_pair
from deltamend.machine.threads import one_thread_each
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.views import Matrix, StoredMatrix, SubMatrix
from deltamend.progress import Progress
from deltamend.repairing.plan import out_dtype_name, pair_flops


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
        base: the model fine-tuning started from: a folder, a hub id, or what else `open_checkpoint` takes.
        finetuned: its descendant.
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
    with open_pair(base, finetuned, include=include, exclude=exclude) as pair:
        items = [
            (one, part) for one in pair.pairing.pairs if one.action == "filter" for part in one.submatrices or (None,)
        ]
        if not items:
            raise UsageError("no matrix is left to diagnose; widen --include or --exclude")
        run = _Diagnosing(pair.base, pair.finetuned, written, values)
        order = sorted(items, key=lambda item: (-pair_flops(item[0]), item_name(item)))
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
    matrices = tuple(found[item_name(item)] for item in items)
    verdict, sentences, commands = summary(matrices)
    return Diagnosis(
        base=Path(base).name,
        finetuned=Path(finetuned).name,
        written=out_dtype or "as stored",
        matrices=matrices,
        left_out=dict(Counter(one.reason for one in pair.pairing.pairs if one.action == "keep")),
        notes=pair.notes,
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

    def one(self, item: Item) -> MatrixDiagnosis:
        """One matrix, in the memory of the calling thread."""
        pair, part = item
        if pair.base is None:
            raise AssertionError(f"{pair.name} has no base")
        if not hasattr(self._local, "buffers"):
            self._local.buffers = Buffers()
        buffers: Buffers = self._local.buffers
        base: Matrix = StoredMatrix(self._base, pair.base, buffers, "base")
        finetuned: Matrix = StoredMatrix(self._finetuned, pair.finetuned, buffers, "finetuned")
        rows = pair.rows
        if part is not None:
            base = SubMatrix(base, part.base_rows, part.columns, buffers, "base-part")
            finetuned = SubMatrix(finetuned, part.finetuned_rows, part.columns, buffers, "finetuned-part")
            rows = part.rows
        written = NUMPY_DTYPES[self._written or pair.finetuned.output_dtype]
        question = Question(item_name(item), rows, written, self._values, pair.update_rank)
        return diagnose_matrix(base, finetuned, question, buffers)
