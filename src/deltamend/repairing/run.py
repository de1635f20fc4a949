"""Carry out the plan of a repair: hash the inputs, repair every tensor, and publish OUT once it is complete."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version

from deltamend.checkpoint.file_names import MANIFEST_FILE
from deltamend.checkpoint.hashing import hash_file
from deltamend.checkpoint.manifest import (
    InputRecord,
    LeftOutRecord,
    Manifest,
    RunRecord,
    TensorRecord,
    decode_manifest,
    encode_manifest,
)
from deltamend.checkpoint.output_checks import check_output
from deltamend.checkpoint.publishing import WorkFolder, finish_exchange, remove_leftovers
from deltamend.checkpoint.verification import check_readable, verify
from deltamend.errors import UsageError, option
from deltamend.inputs.pairing import TensorPair
from deltamend.machine.threads import Workers
from deltamend.matrices.update_walk import CheckpointTensors, SidesReader, pair_flops
from deltamend.progress import Progress, ignore_progress
from deltamend.repairing.input_hashes import hash_inputs
from deltamend.repairing.options import RepairOptions, opened_pair
from deltamend.repairing.outputs import FolderOutput, WrittenTensor
from deltamend.repairing.plan import RepairPlan, plan_repair
from deltamend.repairing.repair_report import RepairReport, library_versions
from deltamend.repairing.tensor_repairer import TensorRepairer
from deltamend.repairing.to_adapter import AdapterOutput
from deltamend.repairing.to_checkpoint import CheckpointOutput
from deltamend.repairing.written_files import write_sidecars


def repair_folders(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: RepairOptions,
) -> RepairReport:
    """Plan a repair with a named method and carry it out; see `plan_repair` and `run_plan`."""
    with opened_pair(base, finetuned, options) as pair:
        return run_plan(plan_repair(pair, out, options))


def run_plan(
    plan: RepairPlan,
    *,
    device: str = "cpu",
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RepairReport:
    """Carry out a plan. The plan stays open.

    A run that fails deletes its work folder. A run that is interrupted or killed keeps it, so that `resume` can continue; so
    does a run whose output is complete but cannot be moved to OUT.

    Args:
        plan: the plan.
        device: where spectral filters run, "cpu" or a torch device such as "cuda".
        workers: number of tensors worked on at a time, with one BLAS thread each; None for one per core. It does not
            change the result.
        resume: continue an unfinished run of the same plan, or do nothing if OUT is already its result.
        overwrite: replace the content of OUT once the new output is complete.
        progress: callback for the name of each finished tensor and the share of the work that is done.

    Raises:
        CheckpointError: an input changed during the run.
        UsageError: the device does not exist, or the number of workers is below 1.
        FilterError: a tensor holds NaN or Inf, or a filter failed; a tensor that cannot be repaired is never just copied.
        OutputError: OUT cannot be written.
    """
    finish_exchange(plan.out, resume=resume)
    if resume and (manifest := published_manifest(plan)) is not None:
        remove_leftovers(plan.out)
        return RepairReport(plan.out, manifest, written=False, recommendation=plan.recommendation)
    check_output(plan.out, plan.inputs, overwrite=overwrite)
    team = Workers(workers)
    check_device(device)
    started = time.perf_counter()
    with WorkFolder(plan.out, plan.resume_key, resume=resume) as work:
        try:
            manifest = _write_everything(plan, work, team, device, progress or ignore_progress, started)
            text = encode_manifest(manifest)
            work.write_file(MANIFEST_FILE, text)
            check_readable(work.staged, manifest)
            for checkpoint in (plan.base, plan.finetuned):
                checkpoint.check_unchanged()
            plan.check_method_files()
        except Exception:
            work.discard()
            raise
        replaced = work.publish(overwrite=overwrite)
    return RepairReport(plan.out, decode_manifest(text), recommendation=plan.recommendation, replaced=replaced)


def published_manifest(plan: RepairPlan) -> Manifest | None:
    """The manifest of OUT if OUT is the undamaged result of this plan on these inputs, else None."""
    try:
        manifest = decode_manifest((plan.out / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if manifest.plan_sha256 != plan.sha256 or verify(plan.out):
        return None
    found = [
        [hash_file(path, name) for name, path in side.weight_files.items()] for side in (plan.base, plan.finetuned)
    ]
    return manifest if [list(manifest.base.files), list(manifest.finetuned.files)] == found else None


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use on this machine.

    Raises:
        UsageError: the device does not exist or cannot be used.
    """
    if device == "cpu":
        return
    import torch  # not at the top of the file, because its import takes longer than most repairs

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{option('device')}: {device!r} cannot be used on this machine ({reason}); leave this option out to use the CPU"
        ) from error


def _write_everything(
    plan: RepairPlan, work: WorkFolder, team: Workers, device: str, progress: Progress, started: float
) -> Manifest:
    """Write every file of the output except the manifest, and return the manifest, which describes them."""
    with _open_output(plan, work, team) as output, team:  # the workers end before the files that they write are closed
        inputs = hash_inputs(plan.base, plan.finetuned, team)
        work.keep_to_inputs(hashlib.sha256("".join(map(str, inputs)).encode()).hexdigest())
        reader = SidesReader(CheckpointTensors(plan.base), CheckpointTensors(plan.finetuned))
        repairer = TensorRepairer(reader, plan.methods, device=device, rounding=plan.options.rounding)
        repairer.survey(plan.pairing.pairs, team.map)
        records = _repair_tensors(plan, work, team, output, repairer, progress)
        tensors, weights = output.finish(records, inputs[1], team)
    manifest = _manifest(
        plan,
        inputs,
        tensors,
        RunRecord(seconds=time.perf_counter() - started, workers=team.count, versions=library_versions()),
    )
    files = sorted([*weights, *write_sidecars(plan, work, manifest)], key=lambda file: file.name)
    return manifest.model_copy(update={"files": tuple(files)})


def _manifest(
    plan: RepairPlan, inputs: tuple[InputRecord, InputRecord], tensors: tuple[TensorRecord, ...], run: RunRecord
) -> Manifest:
    return Manifest(
        deltamend=version("deltamend"),
        plan_sha256=plan.sha256,
        method=plan.method.name,
        parameters=plan.method.model_dump(mode="json"),
        options=plan.described_options,
        base=inputs[0],
        finetuned=inputs[1],
        notes=plan.notes,
        only_in_base=plan.pairing.only_in_base,
        left_out=tuple(LeftOutRecord(name=file.name, reason=file.reason) for file in plan.left_out),
        parent=plan.pair.parent,
        coverage=plan.pairing.coverage,
        tensors=tensors,
        files=(),
        run=run,
    )


@contextmanager
def _open_output(plan: RepairPlan, work: WorkFolder, team: Workers) -> Iterator[FolderOutput]:
    output: FolderOutput
    if plan.adapter is None:
        output = CheckpointOutput(plan, work, team.stopped)
    else:
        output = AdapterOutput(plan, plan.adapter, work, team.stopped)
    with closing(output):
        yield output


def _repair_tensors(
    plan: RepairPlan,
    work: WorkFolder,
    team: Workers,
    output: FolderOutput,
    repairer: TensorRepairer,
    progress: Progress,
) -> list[TensorRecord]:
    """Repair or copy every tensor that an earlier run has not finished, the most costly ones first.

    Returns:
        The records of all tensors, in the order in which the output's files hold them.
    """
    report = _cost_reporter(plan, progress)

    def repair_one(pair: TensorPair) -> TensorRecord:
        started = time.perf_counter()
        record = work.finished.get(pair.name)
        if record is None or not output.is_intact(pair, record):
            record = _tensor_record(plan, pair, output.write(pair, repairer), started)
            work.record(record)
        report(pair)
        return record

    pairs = sorted(plan.pairing.pairs, key=lambda pair: (-_cost(pair), pair.name))
    by_name = {record.name: record for record in team.map(repair_one, pairs)}
    return [by_name[tensor.name] for shard in plan.layout.shards for tensor in shard.tensors]


def _tensor_record(plan: RepairPlan, pair: TensorPair, written: WrittenTensor, started: float) -> TensorRecord:
    """Make the record of a tensor from the plan and from what was written."""
    method = plan.methods.get(pair.name)
    return TensorRecord(
        **written.done.model_dump(exclude={"reason"}),
        name=pair.name,
        file=written.file,
        shape=pair.finetuned.shape,
        dtype=written.dtype,
        finetuned_dtype=pair.finetuned.output_dtype,
        base_dtype=None if pair.base is None else pair.base.dtype,
        action=pair.action,
        method=None if method is None else method.described(),
        rows=pair.rows if pair.action == "filter" else 0,
        reason="; ".join(text for text in (pair.reason, written.done.reason) if text),
        parts=written.parts,
        xxh3=written.xxh3,
        adapter=written.adapter,
        seconds=time.perf_counter() - started,
    )


def _cost_reporter(plan: RepairPlan, progress: Progress) -> Callable[[TensorPair], None]:
    """Make a function that reports progress, weighted by the cost of the tensors; any thread may call it."""
    lock = threading.Lock()
    total = sum(map(_cost, plan.pairing.pairs))
    done = 0.0

    def report(pair: TensorPair) -> None:
        nonlocal done
        with lock:
            done += _cost(pair)
            share = done / total if total else 1.0
        progress(pair.name, min(1.0, share))

    return report


def _cost(pair: TensorPair) -> float:
    """The rough cost of one tensor, in floating-point operations; copying one byte takes about as long as 100 of them."""
    return pair_flops(pair) + 100.0 * pair.finetuned.nbytes
