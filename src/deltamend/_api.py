"""`deltamend.repair` and `deltamend.plan_repair`: what ties the recommendation of a method to the repair itself."""

from __future__ import annotations

import os
from typing import Unpack

from deltamend.choosing.recommendation import recommend, refuse_with_auto
from deltamend.errors import UsageError
from deltamend.inputs.open_models import OpenPair
from deltamend.progress import Progress
from deltamend.repairing import plan as planning
from deltamend.repairing.options import AUTO, RepairKeywords, RepairOptions, make_options, pair_of
from deltamend.repairing.plan import RepairPlan
from deltamend.repairing.repair_report import RepairReport
from deltamend.repairing.run import run_plan

StrPath = str | os.PathLike[str]


def repair(
    base: StrPath | RepairPlan,
    finetuned: StrPath | None = None,
    out: StrPath | None = None,
    *,
    device: str = "cpu",
    workers: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    **options: Unpack[RepairKeywords],
) -> RepairReport:
    """Repair FINETUNED against BASE and write the result to OUT.

    OUT appears whole or not at all. Memory does not grow with the model: each worker holds at most one delta of
    `matrices.delta.BLOCK_ELEMENTS` entries (64 MiB in fp32) and a few squares of a matrix's shorter side. `method="auto"` also
    loads the base once, in float32, unless it did so before.

    Args:
        base: the checkpoint that fine-tuning started from: a folder, a hub id `org/name@revision`, a GGUF file, or any of
            these with a LoRA adapter, `MODEL+ADAPTER`. Or a plan of `plan_repair`, which stays open; then `finetuned`, `out`
            and the options are left out, as the plan has them.
        finetuned: its descendant, likewise.
        out: folder to write; it must not exist or be empty, unless `overwrite`.
        device: where spectral filters run, "cpu" or a torch device such as "cuda".
        workers: tensors worked on at a time, with one BLAS thread each; None for one a core. The result is the same.
        overwrite: replace what is in OUT, once the new output is whole.
        resume: go on with an unfinished run of the same plan, or do nothing when OUT is already its result.
        progress: called as work ends.
        options: the fields of `RepairOptions`: `method` ("dg-hard" by default; "auto" for the recommended one) and its
            `parameters`, `rules`, `vectors`, `include`, `exclude`, `rename`, `split_fused`, `out_dtype`, `output`, `rounding` and
            `max_shard_size`.

    Returns:
        The report; the same numbers are in OUT/deltamend.json.

    Raises:
        CheckpointError: an input cannot be read, or is quantised in a way that cannot be undone.
        PairingError: the inputs do not belong together.
        UsageError: an unknown method, or a parameter or option with an invalid value.
        FilterError: NaN or Inf in a tensor, or a filter failed; nothing is passed through.
        OutputError: OUT cannot be written.

    Source: the default method is DG-Hard of arXiv 2605.20296; `deltamend methods show NAME` names the paper of each method.
    """
    if isinstance(base, RepairPlan):
        if finetuned is not None or out is not None or options:
            raise UsageError("a plan brings its own FINETUNED, OUT and options; leave these arguments out")
        return run_plan(base, device=device, workers=workers, resume=resume, overwrite=overwrite, progress=progress)
    if finetuned is None or out is None:
        raise UsageError("give BASE, FINETUNED and OUT, or a plan that `plan_repair` made")
    with plan_repair(base, finetuned, out, overwrite=overwrite or resume, progress=progress, **options) as plan:
        return run_plan(plan, device=device, workers=workers, resume=resume, overwrite=overwrite, progress=progress)


def plan_repair(
    base: StrPath | OpenPair,
    finetuned: StrPath | None = None,
    out: StrPath | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Unpack[RepairKeywords],
) -> RepairPlan:
    """Open both checkpoints and decide everything about a repair, without writing a byte.

    Args:
        base: as for `repair`; or both checkpoints as `open_pair` opened them, which the plan closes.
        finetuned: as for `repair`; left out where a pair is given.
        out: as for `repair`.
        overwrite: whether OUT may exist.
        progress: called while `method="auto"` reads the base, which takes a minute or two where it is not known yet.
        options: as for `repair`; with an open pair, `include`, `exclude`, `rename` and `split_fused` are the pair's.

    Returns:
        The plan: a context manager that closes both checkpoints. `plan.pairing` says what will be done to every tensor,
        `plan.estimate(workers)` how many seconds and bytes of memory that should take; `plan.pair` is what `diagnose` and
        `compare` take in place of BASE and FINETUNED.

    Raises:
        CheckpointError: an input cannot be read, or is quantised in a way that cannot be undone.
        PairingError: the inputs do not belong together.
        UsageError: an unknown method, or an option with an invalid value.
        OutputError: OUT exists, or cannot be written to.

    Source: ours.
    """
    if out is None:
        raise UsageError("OUT is missing; give the folder to write")
    wanted = make_options(RepairOptions, options)
    if wanted.method == AUTO:
        refuse_with_auto(wanted)
    pair = pair_of(base, finetuned, wanted)
    try:
        return planning.plan_repair(
            pair, out, wanted, overwrite=overwrite, recommend=lambda: recommend(pair.called[0], progress=progress)
        )
    except BaseException:
        if pair is not base:
            pair.close()
        raise
