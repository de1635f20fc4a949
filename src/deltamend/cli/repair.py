"""`deltamend repair`: the main job."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import deltamend
from deltamend.errors import UsageError
from deltamend.plan import RepairOptions, RepairPlan, plan_repair
from deltamend.repair import Progress as ProgressCallback
from deltamend.repair import RepairReport

_LOSS_WORTH_A_WARNING = 0.1
"""Share of ‖Δ*‖ lost in the cast above which bf16 output was seen to undo a repair."""


def repair(
    base: Annotated[Path, typer.Argument(help="Folder of the checkpoint fine-tuning started from.")],
    finetuned: Annotated[Path, typer.Argument(help="Folder of its fine-tuned descendant.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; appears whole or not at all.")],
    method: Annotated[str, typer.Option(help="See `deltamend methods`.")] = "dg-hard",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the method.")
    ] = None,
    include: Annotated[
        str | None, typer.Option("-i", "--include", metavar="REGEX", help="Repair only matrices it finds.")
    ] = None,
    exclude: Annotated[
        str | None, typer.Option("-e", "--exclude", metavar="REGEX", help="Keep matrices it finds.")
    ] = None,
    out_dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; default: as FINETUNED.")] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Such as 5GB; default: the shards of FINETUNED.")] = None,
    device: Annotated[str, typer.Option(help="Where filters run: cpu, or cuda.")] = "cpu",
    workers: Annotated[int | None, typer.Option(min=1, help="Tensors at a time; default: one a core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT once the new one is whole.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="A line for every tensor; -vv: tracebacks.")
    ] = 0,
) -> None:
    """Repair FINETUNED against BASE and write the result to OUT."""
    parameters = _parameters(set_ or [])
    console = Console(stderr=as_json, quiet=quiet, highlight=False)
    if dry_run:
        options = RepairOptions(include, exclude, out_dtype, max_shard_size)
        plan = plan_repair(
            base, finetuned, out, method=method, parameters=parameters, options=options, overwrite=overwrite or resume
        )
        _print_plan(console, plan, workers or len(os.sched_getaffinity(0)), verbose)
        plan.close()
        return
    with _progress_bar(quiet) as progress:
        report = deltamend.repair(
            base,
            finetuned,
            out,
            method=method,
            parameters=parameters,
            include=include,
            exclude=exclude,
            out_dtype=out_dtype,
            max_shard_size=max_shard_size,
            device=device,
            workers=workers,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        )
    _print_report(console, report, verbose)
    if as_json:
        sys.stdout.write(report.manifest.model_dump_json(indent=1) + "\n")


def _parameters(settings: list[str]) -> dict[str, object]:
    parameters: dict[str, object] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise UsageError(f"--set: {setting!r} is not KEY=VALUE; write it like --set alpha=0.5")
        parameters[key] = value
    return parameters


@contextmanager
def _progress_bar(quiet: bool) -> Iterator[ProgressCallback]:
    columns = (
        TextColumn("repairing"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda name, share: bar.update(task, completed=share, description=name)


def _print_plan(console: Console, plan: RepairPlan, workers: int, verbose: int) -> None:
    """What would be done: tensors, what is kept and why, files, bytes, time and memory."""
    matrices = [pair for pair in plan.pairing.pairs if pair.action == "filter"]
    console.print(
        f"{plan.method.name} on {len(matrices)} matrices of {len(plan.pairing.pairs)} tensors; nothing is written"
    )
    kept = Counter(pair.reason for pair in plan.pairing.pairs if pair.action == "keep")
    for reason, count in sorted(kept.items()):
        console.print(f"  {count} kept as fine-tuned: {reason}")
    for name in plan.pairing.only_in_base:
        console.print(f"  only in BASE, left out: {name}", markup=False)
    for file in plan.left_out:
        console.print(f"  file left out ({file.reason}): {file.name}", markup=False)
    if verbose:
        for pair in plan.pairing.pairs:
            shape = "×".join(str(size) for size in pair.finetuned.shape)
            console.print(f"  {pair.action} {pair.name} [{shape}] {pair.reason}".rstrip(), markup=False)
    estimate = plan.estimate(workers)
    console.print(
        f"would write {plan.bytes_to_write / 1e6:,.0f} MB in {len(plan.layout.shards)} weight file(s) and {len(plan.sidecars)} others; "
        f"about {max(1, round(estimate.seconds))} s and {estimate.memory_bytes / 2**30:.1f} GiB with {workers} worker(s)"
    )


def _print_report(console: Console, report: RepairReport, verbose: int) -> None:
    manifest = report.manifest
    if verbose:
        table = Table("tensor", "outcome", "rank", "energy kept", "lost in cast", "s")
        for tensor in report.tensors:
            rank = "" if tensor.spectrum is None else f"{tensor.spectrum.rank}/{tensor.spectrum.full_rank}"
            energy, lost = _percent(tensor.kept_energy), _percent(tensor.realised_error)
            table.add_row(tensor.name, tensor.outcome, rank, energy, lost, f"{tensor.seconds:.2f}")
        console.print(table, markup=False)
    outcomes = Counter(tensor.outcome for tensor in report.tensors)
    console.print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
    console.print(
        f"kept {_percent(report.kept_energy)} of the update's energy; rounding to the stored dtype changed {_percent(report.realised_error)} of it"
    )
    if report.realised_error > _LOSS_WORTH_A_WARNING:
        console.print(
            "warning: the written weights hold much less than the filter kept; write them with --out-dtype fp32"
        )
    failed = [tensor.name for tensor in report.tensors if tensor.outcome == "no-noise-floor"]
    if failed:
        console.print(
            f"{len(failed)} matrices have no measurable noise floor and were kept as fine-tuned, the first: {failed[0]}",
            markup=False,
        )
    console.print(f"wrote {report.out} in {manifest.run.seconds:.1f} s", markup=False, soft_wrap=True)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
