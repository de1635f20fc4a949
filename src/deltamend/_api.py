"""The public functions `repair` and `plan_repair`, which can also find the recommended method first."""

from __future__ import annotations

import os
from typing import Unpack

from deltamend.choosing.recommendation import recommend, refuse_with_auto
from deltamend.errors import UsageError
from deltamend.inputs.open_models import OpenPair, model_and_adapter
from deltamend.progress import Progress
from deltamend.repairing import plan as planning
from deltamend.repairing.adapter_layout import adapter_of_auto
from deltamend.repairing.options import AUTO, RepairKeywords, RepairOptions, make_options, pair_of
from deltamend.repairing.plan import RepairPlan
from deltamend.repairing.repair_report import RepairReport
from deltamend.repairing.rules import MethodChoice
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

    OUT appears complete or not at all. Memory does not grow with the model: each worker holds at most one delta of
    `matrices.delta.BLOCK_ELEMENTS` entries (64 MiB in fp32) and a few square matrices as large as a matrix's shorter side.
    `method="auto"` also loads each model once, one after the other, in float32, unless the cache already has what it computes from
    it.

    Args:
        base: the checkpoint that fine-tuning started from: a folder, a hub id `org/name@revision`, a GGUF file, or any of
            these with a LoRA adapter, `MODEL+ADAPTER`. Instead of a checkpoint it may be a plan made by `plan_repair`; then
            leave out `finetuned`, `out` and the options, which are part of the plan. The plan stays open.
        finetuned: the fine-tuned checkpoint, in any of the same forms.
        out: folder to write. Unless `overwrite` is set, it must not exist or must be empty.
        device: where spectral filters run, "cpu" or a torch device such as "cuda".
        workers: number of tensors worked on at a time, with one BLAS thread each; None for one per core. It does not
            change the result.
        overwrite: replace the content of OUT once the new output is complete.
        resume: continue an unfinished run of the same plan, or do nothing if OUT is already its result.
        progress: callback for the name of each finished tensor and the share of the work that is done.
        options: the fields of `RepairOptions`: `method` ("dg-hard" by default; "auto" for the recommended one) and its
            `parameters`, `keep`, `rules`, `vectors`, `include`, `exclude`, `rename`, `split_fused`, `allow_unpaired`, `allow_unrelated`, `out_dtype`,
            `output`, `rounding` and `max_shard_size`.

    Returns:
        The report. OUT/deltamend.json holds the same numbers.

    Raises:
        CheckpointError: an input cannot be read, or is quantised in a way that cannot be undone.
        PairingError: the inputs do not belong together.
        UsageError: the method is unknown, or a parameter or option has an invalid value.
        FilterError: a tensor holds NaN or Inf, or a filter failed; a tensor that cannot be repaired is never just copied.
        OutputError: OUT cannot be written.

    Source: the default method is DG-Hard of arXiv 2605.20296; `deltamend methods show NAME` names the paper of each method.
    """
    if isinstance(base, RepairPlan):
        if finetuned is not None or out is not None or options:
            raise UsageError("a plan already has its FINETUNED, OUT and options; leave these arguments out")
        return run_plan(base, device=device, workers=workers, resume=resume, overwrite=overwrite, progress=progress)
    if finetuned is None or out is None:
        raise UsageError("FINETUNED or OUT is missing; give BASE, FINETUNED and OUT, or a plan made by `plan_repair`")
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
    """Open both checkpoints and decide everything about a repair, without writing anything to OUT.

    Args:
        base: as for `repair`; or an open pair from `open_pair`, which is closed together with the plan.
        finetuned: as for `repair`; leave it out when `base` is an open pair.
        out: as for `repair`.
        overwrite: whether OUT may already exist.
        progress: callback while `method="auto"` runs both models, which takes a minute or two the first time.
        options: as for `repair`. An open pair has its own options that pair and select matrices; leave these out
            when you give one.

    Returns:
        The plan, a context manager that closes both checkpoints. `plan.pairing` says what will be done to every tensor,
        `plan.estimate(workers)` how many seconds and how many bytes of memory the repair should take, and `plan.pair` can be
        passed to `diagnose` and `compare` in place of BASE and FINETUNED.

    Raises:
        CheckpointError: an input cannot be read, or is quantised in a way that cannot be undone.
        PairingError: the inputs do not belong together.
        UsageError: the method is unknown, or an option has an invalid value.
        OutputError: OUT already exists, or cannot be written to.

    Source: ours.
    """
    if out is None:
        raise UsageError("OUT is missing; name the folder to write")
    wanted = make_options(RepairOptions, options)
    check_methods(wanted, None if finetuned is None else str(finetuned))
    pair = pair_of(base, finetuned, wanted)
    try:
        return planning.plan_repair(
            pair,
            out,
            wanted,
            overwrite=overwrite,
            recommend=lambda: recommend(*pair.called, keep=wanted.keep, progress=progress),
        )
    except BaseException:
        if pair is not base:
            pair.close()
        raise


def check_methods(options: RepairOptions, finetuned: str | None) -> None:
    """Refuse methods, parameters and rules that are invalid, before a checkpoint is opened or downloaded.

    Args:
        options: of the repair.
        finetuned: FINETUNED as it was given; None if the pair is open already.

    Raises:
        UsageError: one of them is, or something is asked for that `method="auto"` decides by itself.
    """
    if options.method == AUTO:
        refuse_with_auto(options)
        if options.output == "adapter" and finetuned is not None and model_and_adapter(finetuned) is None:
            raise UsageError(adapter_of_auto(f"{finetuned} is a whole model"))
        MethodChoice("none", None, options.rules, options.vectors)
    else:
        MethodChoice(options.method, options.parameters, options.rules, options.vectors)
