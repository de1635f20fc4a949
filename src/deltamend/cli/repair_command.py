"""`deltamend repair`: the main job."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

import deltamend
from deltamend.checkpoint.file_names import ADAPTER_FILE
from deltamend.checkpoint.manifest import Manifest
from deltamend.checkpoint.output_place import check_output
from deltamend.choosing.recommendation import AUTO, recommend
from deltamend.errors import DeltamendError, OutputError, PairingError, UsageError
from deltamend.inputs.open_models import open_pair
from deltamend.machine.atomic import write_whole
from deltamend.methods.registry import all_methods, method_class
from deltamend.progress import Progress as ProgressCallback
from deltamend.repairing.config import RepairConfig, read_config
from deltamend.repairing.plan import RepairOptions, RepairPlan, plan_repair
from deltamend.repairing.run import RepairReport, published_manifest
from deltamend.report.diagnosis_page import render_diagnosis_page

_LOSS_WORTH_A_WARNING = 0.1
"""Share of ‖Δ*‖ lost in the cast above which bf16 output was seen to undo a repair."""


def repair(
    base: Annotated[
        str | None, typer.Argument(help="What fine-tuning started from: a folder, or a hub id org/name@revision.")
    ] = None,
    finetuned: Annotated[
        str | None, typer.Argument(help="Its fine-tuned descendant; MODEL+ADAPTER adds a LoRA adapter to a model.")
    ] = None,
    out: Annotated[str | None, typer.Argument(help="Folder to write; appears whole or not at all.")] = None,
    method: Annotated[
        str | None, typer.Option(help="See `deltamend methods`, or auto: the one we recommend; default: dg-hard.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the method.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with any of this; options given here win. Then OUT alone is enough.")
    ] = None,
    include: Annotated[
        str | None, typer.Option("-i", "--include", metavar="REGEX", help="Repair only matrices it finds.")
    ] = None,
    exclude: Annotated[
        str | None, typer.Option("-e", "--exclude", metavar="REGEX", help="Keep matrices it finds.")
    ] = None,
    vectors: Annotated[
        str | None,
        typer.Option(help="What norms and biases follow: finetuned (default), base, or a number between 0 and 1."),
    ] = None,
    rename: Annotated[
        str | None, typer.Option(metavar="OLD=NEW", help="What names begin with in BASE and in FINETUNED.")
    ] = None,
    split_fused: Annotated[
        bool, typer.Option("--split-fused", help="Repair q, k and v, or gate and up, stored as one, one by one.")
    ] = False,
    out_dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; default: as FINETUNED.")] = None,
    as_: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="checkpoint (default), or adapter: a PEFT LoRA adapter to BASE, for methods that keep a low rank.",
        ),
    ] = None,
    rounding: Annotated[str | None, typer.Option(help="Cast to bf16 or fp16: nearest (default) or stochastic.")] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Such as 5GB; default: the shards of FINETUNED.")] = None,
    device: Annotated[str, typer.Option(help="Where filters run: cpu, or cuda.")] = "cpu",
    workers: Annotated[int | None, typer.Option(min=1, help="Tensors at a time; default: one a core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; OUT is not written.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT once the new one is whole.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page of `deltamend diagnose` for this update, too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="A line for every tensor; -vv: tracebacks.")
    ] = 0,
) -> None:
    """Repair FINETUNED against BASE and write the result to OUT."""
    given = RepairConfig.model_validate({}) if config is None else read_config(config)
    folders = _folders(given, [folder for folder in (base, finetuned, out) if folder is not None], config)
    console = Console(stderr=as_json, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)
    chosen, parameters = _method(given, method, parameters_of(set_ or []))
    options = RepairOptions(
        include=include or given.include,
        exclude=exclude or given.exclude,
        out_dtype=out_dtype or given.out_dtype or given.dtype,
        max_shard_size=max_shard_size or given.max_shard_size,
        rules=given.rules,
        vectors=vectors or given.vectors,
        rename=rename or given.rename,
        split_fused=split_fused or given.split_fused,
        output=as_ or given.output,  # type: ignore[arg-type]  # checked with the plan, in one line
        rounding=rounding or given.rounding,  # type: ignore[arg-type]
    )
    if chosen == AUTO:
        _refuse_auto(parameters, options)
    if chosen == AUTO or html is not None:
        # Before BASE is run for minutes and OUT is written. Until BASE is read, any method stands for that of auto.
        known, its = ("none", {}) if chosen == AUTO else (chosen, parameters)
        plan = plan_repair(*folders, method=known, parameters=its, options=options, overwrite=overwrite or resume)
        with closing(plan):
            if html is not None:
                _check_page(html, folders, plan)
    if chosen == AUTO:
        with progress_bar(quiet, "reading BASE") as progress:
            advice = recommend(folders[0], progress=progress)
        chosen, parameters = advice.method, advice.parameters
        if vectors is None and "vectors" not in given.model_fields_set:
            options = replace(options, vectors=advice.vectors)
        if advice.fallback and quiet:  # another method than was asked for is no news to be quiet about
            typer.echo(f"auto: {advice.reason}", err=True)
        console.print(f"auto: {advice.reason}")
    if dry_run:
        plan = plan_repair(
            *folders, method=chosen, parameters=parameters, options=options, overwrite=overwrite or resume
        )
        try:
            if resume and published_manifest(plan) is not None:
                console.print(f"{plan.out} is whole already; there is nothing to do")
                return
            check_output(plan.out, plan.inputs, overwrite=overwrite)
            count = workers or len(os.sched_getaffinity(0))
            _print_plan(console, plan, count, verbose)
            if as_json:
                sys.stdout.write(json.dumps(plan.described(count), indent=1) + "\n")
        finally:
            plan.close()
        return
    with progress_bar(quiet, "repairing") as progress:
        report = deltamend.repair(
            *folders,
            method=chosen,
            parameters=parameters,
            **{option.name: getattr(options, option.name) for option in fields(options)},
            device=device,
            workers=workers,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        )
    _print_report(console, report, verbose)
    if as_json:
        sys.stdout.write(report.manifest.model_dump_json(indent=1) + "\n")
    if html is not None:
        with progress_bar(quiet, "diagnosing") as progress:
            _write_page(html, folders, options, workers, progress)


def _folders(given: RepairConfig, named: list[str], config: Path | None) -> tuple[str, str, str]:
    """BASE, FINETUNED and OUT: three on the command line, or with a config OUT alone or none."""
    if len(named) == 3:
        return named[0], named[1], named[2]
    if config is None or len(named) == 2:
        raise UsageError("give BASE, FINETUNED and OUT, or --config FILE with base_model, finetuned_model and out")
    out = named[0] if named else given.out
    for key, value in (("base_model", given.base_model), ("finetuned_model", given.finetuned), ("out", out)):
        if value is None:
            raise UsageError(f"{config}: {key} is missing; add it, or give it on the command line")
    return str(given.base_model), str(given.finetuned), str(out)


def _method(given: RepairConfig, method: str | None, parameters: dict[str, object]) -> tuple[str, dict[str, object]]:
    """The method and its parameters; a method on the command line leaves those of the config behind."""
    if method is not None:
        return method, parameters
    return given.method, {**given.method_parameters, **parameters}


def _refuse_auto(parameters: dict[str, object], options: RepairOptions) -> None:
    """Raise UsageError for what cannot be asked for together with `auto`."""
    if parameters or options.rules:
        raise UsageError(f"--method {AUTO}: chooses method and parameters; leave out --set and rules, or name a method")
    if options.output == "adapter":
        able = ", ".join(name for name, kind in all_methods().items() if kind.low_rank)
        raise UsageError(
            f"--as adapter: --method {AUTO} is null-space, or wise-ft where the base cannot be run, and what they keep is "
            f"not low-rank; use one of {able}, or write --as checkpoint"
        )


def _check_page(page: Path, folders: tuple[str, str, str], plan: RepairPlan) -> None:
    """Refuse a page that cannot be made or written, while OUT is as it was.

    Raises:
        OutputError: its folder is not there or cannot be written to, or it lies in OUT or an input.
        UsageError: the diagnosis has no matrix, or cannot pair the tensors.
    """
    folder = Path(os.path.realpath(page.parent))
    for other in (plan.out, *plan.inputs):
        if (folder / page.name).is_relative_to(os.path.realpath(other)):
            raise OutputError(f"{page}: lies inside {other}; give --html a place outside OUT and the inputs")
    if not folder.is_dir() or page.is_dir():
        wrong = "is a folder" if page.is_dir() else f"there is no folder {page.parent}"
        raise OutputError(f"{page}: cannot be written ({wrong}); give --html a file in a folder that is there")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{page}: cannot be written (no permission in {folder}); give --html another folder")
    options = plan.options
    try:
        # As `diagnose` opens them: it takes no --rename.
        with open_pair(*folders[:2], include=options.include, exclude=options.exclude) as pair:
            if not any(one.action == "filter" for one in pair.pairing.pairs):
                raise UsageError("--html: no matrix is left to diagnose; widen --include or --exclude, or leave it out")
    except PairingError as error:
        raise UsageError(f"--html: the diagnosis takes no --rename; leave one of them out ({error})") from error


def _write_page(
    page: Path,
    folders: tuple[str, str, str],
    options: RepairOptions,
    workers: int | None,
    progress: ProgressCallback,
) -> None:
    """Write the page of the diagnosis, once OUT is there.

    Raises:
        OutputError: it cannot be made, whatever the reason; it says that OUT is whole.
    """
    try:
        diagnosis = deltamend.diagnose(
            *folders[:2],
            include=options.include,
            exclude=options.exclude,
            out_dtype=options.out_dtype,
            workers=workers,
            progress=progress,
        )
        write_whole(page, render_diagnosis_page(diagnosis))
    except DeltamendError as error:
        raise OutputError(f"{page}: the page is missing, {folders[2]} is whole ({error})") from error


def parameters_of(settings: list[str], option: str = "--set") -> dict[str, object]:
    """The parameters that KEY=VALUE texts give; a value in [ ] or { } is read as YAML."""
    parameters: dict[str, object] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise UsageError(f"{option}: {setting!r} is not KEY=VALUE; write it like alpha=0.5")
        try:
            parameters[key] = yaml.safe_load(value) if value[:1] in ("[", "{") else value
        except yaml.YAMLError as error:
            raise UsageError(f"{option}: {value!r} is not YAML ({' '.join(str(error).split())}); mend it") from error
    return parameters


@contextmanager
def progress_bar(quiet: bool, doing: str) -> Iterator[ProgressCallback]:
    """A progress bar on a terminal, nothing elsewhere."""
    columns = (
        TextColumn(doing),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda name, share: bar.update(task, completed=share, description=name)


def _print_plan(console: Console, plan: RepairPlan, workers: int, verbose: int) -> None:
    """What would be done: tensors, what is kept and why, files, bytes, time and memory."""
    filtered = [pair for pair in plan.pairing.pairs if pair.action == "filter"]
    matrices = sum(len(pair.shapes) for pair in filtered if pair.is_matrix)
    vectors = sum(not pair.is_matrix for pair in filtered)
    also = f" and {vectors} other tensors" if vectors else ""
    console.print(
        f"{plan.method.name} on {matrices} matrices{also} of {len(plan.pairing.pairs)} tensors; nothing is written"
    )
    for note in plan.notes:
        console.print(f"  {note}")
    kept = Counter(pair.reason for pair in plan.pairing.pairs if pair.action == "keep")
    for reason, count in sorted(kept.items()):
        console.print(f"  {count} kept as fine-tuned: {reason}")
    _print_left_out(console, plan.pairing.only_in_base, [(file.name, file.reason) for file in plan.left_out])
    if verbose:
        for pair in plan.pairing.pairs:
            shape = "×".join(str(size) for size in pair.finetuned.shape)
            console.print(f"  {pair.action} {pair.name} [{shape}] {pair.reason}".rstrip())
    estimate = plan.estimate(workers)
    written = f"{plan.bytes_to_write / 1e6:,.0f} MB in {len(plan.layout.shards)} weight file(s)"
    if plan.adapter is not None:
        written = "an adapter, whose size depends on the ranks,"
    console.print(
        f"would write {written} and {len(plan.sidecars)} others; "
        f"about {max(1, round(estimate.seconds))} s and {estimate.memory_bytes / 2**30:.1f} GiB with {workers} worker(s)"
    )


def _print_left_out(console: Console, only_in_base: Sequence[str], files: Sequence[tuple[str, str]]) -> None:
    for name in only_in_base:
        console.print(f"  only in BASE, left out: {name}")
    for name, reason in files:
        console.print(f"  file left out ({reason}): {name}")


def _print_report(console: Console, report: RepairReport, verbose: int) -> None:
    manifest = report.manifest
    for note in manifest.notes:
        console.print(f"  {note}")
    _print_left_out(console, manifest.only_in_base, [(file.name, file.reason) for file in manifest.left_out])
    if verbose:
        table = Table(Column("tensor", overflow="fold"), "outcome", "rank", "energy kept", "lost in cast", "s")
        for tensor in report.tensors:
            rank = "" if tensor.spectrum is None else f"{tensor.spectrum.rank}/{tensor.spectrum.full_rank}"
            energy, lost = _percent(tensor.kept_energy), _percent(tensor.realised_error)
            table.add_row(tensor.name, tensor.outcome, rank, energy, lost, f"{tensor.seconds:.2f}")
        console.print(table)
    outcomes = Counter(tensor.outcome for tensor in report.tensors)
    console.print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
    console.print(
        f"kept {_percent(report.kept_energy)} of the update's energy; rounding to the stored dtype changed {_percent(report.realised_error)} of it"
    )
    instead = "write them with --out-dtype fp32" + (" or --as adapter" if _fits_an_adapter(manifest) else "")
    if report.realised_error > _LOSS_WORTH_A_WARNING:
        console.print(f"warning: the written weights hold much less than the filter kept; {instead}")
    elif (report.undone_by_rounding or 0.0) > _LOSS_WORTH_A_WARNING:
        console.print(
            f"warning: this rounding is {_percent(report.undone_by_rounding)} of what the repair took away, so that part of "
            f"the repair may be lost; {instead}"
        )
    if manifest.is_adapter:
        size = sum(file.size for file in manifest.files if file.name == ADAPTER_FILE)
        whole = sum(file.size for file in manifest.finetuned.files)
        console.print(f"{size / 1e6:,.1f} MB as an adapter, {whole / 1e6:,.1f} MB as FINETUNED's checkpoint")
    failed = [tensor.name for tensor in report.tensors if tensor.outcome == "no-noise-floor"]
    if failed:
        console.print(
            f"{len(failed)} matrices have no measurable noise floor and were kept as fine-tuned, the first: {failed[0]}"
        )
    done = (
        f"wrote {report.out} in {manifest.run.seconds:.1f} s" if report.written else f"{report.out} was whole already"
    )
    console.print(done)


def _fits_an_adapter(manifest: Manifest) -> bool:
    """Whether what a checkpoint holds could be written as an adapter in its place; see `adapter_layout.plan_adapter`."""
    used = {tensor.method.split()[0] for tensor in manifest.tensors if tensor.method and len(tensor.shape) == 2}
    in_parts = any(tensor.parts for tensor in manifest.tensors)
    return not manifest.is_adapter and not in_parts and all(method_class(name).low_rank for name in used)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
