"""Diagnose a whole update: every matrix that both checkpoints hold."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Unpack

from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.diagnosis.matrix import Question, diagnose_matrix
from deltamend.diagnosis.records import Diagnosis, MatrixDiagnosis
from deltamend.diagnosis.verdict import summary
from deltamend.errors import UsageError
from deltamend.inputs.open_models import OpenPair
from deltamend.machine.threads import Workers
from deltamend.matrices.update_walk import CheckpointTensors, MatrixItem, SidesReader, costliest_first, items_of
from deltamend.progress import Progress, count_reporter, ignore_progress
from deltamend.repairing.options import (
    LEAVES_NONE,
    PairKeywords,
    PairOptions,
    RepairOptions,
    make_options,
    opened_pair,
)


def diagnose(
    base: str | os.PathLike[str] | OpenPair,
    finetuned: str | os.PathLike[str] | None = None,
    *,
    out_dtype: str | None = None,
    values: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    **options: Unpack[PairKeywords],
) -> Diagnosis:
    """Measure what an update looks like, and judge whether a spectral threshold can be trusted on it. Nothing is written.

    Memory does not grow with the model: each worker holds one delta of at most `matrices.delta.BLOCK_ELEMENTS` entries and a few
    square matrices as large as a matrix's shorter side.

    Args:
        base: the checkpoint that fine-tuning started from: a folder, a hub id, or any other form that `open_checkpoint`
            takes. It may also be an open pair from `open_pair` or from a plan (`plan.pair`), which stays open.
        finetuned: the fine-tuned checkpoint, in any of the same forms; leave it out when `base` is an open pair.
        out_dtype: the dtype that a repair would write, "bf16", "fp16" or "fp32", for which the effect of rounding is
            predicted; None for the dtype of each tensor in FINETUNED.
        values: whether the records hold every singular value.
        workers: number of matrices worked on at a time; None for one per core. It does not change the result.
        progress: callback for the name of each finished matrix and the share of the matrices that are done.
        options: the options that pair and select matrices, such as `include` and `rename`, as for `deltamend.repair`; not with an open pair.

    Returns:
        One record for each matrix, and what they say together.

    Raises:
        CheckpointError: an input cannot be read, or is quantised.
        PairingError: the inputs do not belong together.
        UsageError: an option is invalid, or no matrix is left.
        FilterError: NaN or Inf in a tensor, or no algorithm gave a checked answer.

    Source: ours; the threshold is that of arXiv 1305.5870, the law of the noise that of Marchenko and Pastur (1967), the edge
    that of Tracy and Widom (arXiv hep-th/9211141).
    """
    started = time.perf_counter()
    written = make_options(RepairOptions, {"out_dtype": out_dtype}).dtype_name
    team = Workers(workers)
    with opened_pair(base, finetuned, make_options(PairOptions, options)) as pair:
        refuse_nothing_to_diagnose(pair)
        items = items_of(pair.pairing.pairs)
        reader = SidesReader(CheckpointTensors(pair.base), CheckpointTensors(pair.finetuned))
        report = count_reporter(progress or ignore_progress, len(items))

        def diagnose_one(item: MatrixItem) -> MatrixDiagnosis:
            found = _diagnose_item(item, reader, written, values)
            report(item.name)
            return found

        with team:
            by_name = {matrix.name: matrix for matrix in team.map(diagnose_one, costliest_first(items))}
    matrices = tuple(by_name[item.name] for item in items)
    verdict, sentences, commands = summary(matrices)
    if pair.parent.unrelated:
        commands = ()  # a repair would bring nothing back
    return Diagnosis(
        base=pair.names[0],
        finetuned=pair.names[1],
        written=out_dtype or "as stored",
        matrices=matrices,
        left_out=dict(Counter(one.reason for one in pair.pairing.pairs if one.action == "keep")),
        notes=pair.notes,
        verdict=verdict,
        parent=pair.parent,
        sentences=(f"{pair.parent.sentence}.", *sentences),
        commands=commands,
        seconds=time.perf_counter() - started,
    )


def refuse_nothing_to_diagnose(pair: OpenPair) -> None:
    """Refuse a pair in which no matrix is selected.

    Raises:
        UsageError: no matrix is selected.
    """
    if not items_of(pair.pairing.pairs):
        raise UsageError(f"no matrix is left to diagnose; {LEAVES_NONE}")


def _diagnose_item(item: MatrixItem, reader: SidesReader, written: str | None, values: bool) -> MatrixDiagnosis:
    """Diagnose one matrix, in the memory of the calling thread."""
    dtype = NUMPY_DTYPES[written or item.pair.finetuned.output_dtype]
    base, finetuned = item.pair.base, item.pair.finetuned
    # The two sides of an adapter's update share their quantisation, which is not part of it.
    if base is None or item.pair.same_source:
        packings: tuple[str | None, str | None] = (None, None)
    else:
        packings = (base.packing, finetuned.packing)
    question = Question(item.name, item.rows, dtype, values, item.pair.update_rank, packings)
    return diagnose_matrix(*reader.sides(item), question, reader.buffers())
