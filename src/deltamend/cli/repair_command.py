"""`deltamend repair`: the main job."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import deltamend
from deltamend._api import check_methods
from deltamend.checkpoint.output_checks import check_output
from deltamend.cli.options import given_options, parameters_of, with_options
from deltamend.cli.repair_output import print_plan, print_report
from deltamend.cli.terminal import progress_bar
from deltamend.diagnosis.update import refuse_nothing_to_diagnose
from deltamend.errors import DeltamendError, OutputError, UsageError
from deltamend.inputs.open_models import OpenPair
from deltamend.machine.atomic import write_whole
from deltamend.repairing.options import AUTO, PairOptions, RepairOptions, make_options, opened_pair
from deltamend.repairing.plan import RepairPlan
from deltamend.repairing.run import published_manifest
from deltamend.repairing.yaml_config import RepairConfig, options_of, read_config
from deltamend.report.diagnosis_page import render_diagnosis_page

_EXAMPLE = "for example: deltamend repair ./base ./finetuned ./repaired --method auto"


@with_options(RepairOptions)
def repair(
    base: Annotated[
        str | None,
        typer.Argument(help="The checkpoint that fine-tuning started from: a folder, or a hub id org/name@revision."),
    ] = None,
    finetuned: Annotated[
        str | None, typer.Argument(help="Its fine-tuned descendant; MODEL+ADAPTER for a model with a LoRA adapter.")
    ] = None,
    out: Annotated[str | None, typer.Argument(help="Folder to write; it appears whole or not at all.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with any of these options, and base_model, finetuned_model and out; what is given here wins."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where spectral filters are computed: cpu, or cuda.")] = "cpu",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of tensors worked on at a time; by default one for each core.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, how long it would take and how much memory.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run with the same options.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if it exists, once the new output is complete.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the page of `deltamend diagnose` for this update.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print deltamend.json, or the plan of a dry run.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    verbose: Annotated[
        int,
        typer.Option("-v", "--verbose", count=True, help="Print a line for every tensor; -vv also prints tracebacks."),
    ] = 0,
    **chosen: Any,
) -> None:
    """Repair FINETUNED against BASE and write the result to OUT."""
    given = RepairConfig.model_validate({}) if config is None else read_config(config)
    folders = _folders(given, [folder for folder in (base, finetuned, out) if folder is not None], config)
    console = Console(stderr=as_json, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)
    asked = _asked(given, chosen)
    selection = {name: asked.pop(name) for name in PairOptions.model_fields if name in asked}
    check_methods(make_options(RepairOptions, asked))  # before anything is opened or downloaded
    with opened_pair(folders[0], folders[1], make_options(PairOptions, selection)) as pair:
        if html is not None:
            _check_page(html, Path(folders[2]), pair)
        with progress_bar(quiet or asked.get("method") != AUTO, "reading BASE") as progress:
            plan = deltamend.plan_repair(
                pair, out=folders[2], overwrite=overwrite or resume, progress=progress, **asked
            )
        if html is not None:
            _refuse_inside(html, plan.method_files)
        _say_what_auto_is(console, plan, quiet=quiet)
        if dry_run:
            _dry_run(console, plan, workers, verbose, resume=resume, overwrite=overwrite, as_json=as_json)
            return
        with progress_bar(quiet, "repairing") as progress:
            report = deltamend.repair(
                plan, device=device, workers=workers, overwrite=overwrite, resume=resume, progress=progress
            )
        print_report(console, report, verbose)
        if as_json:
            sys.stdout.write(report.manifest.model_dump_json(indent=1) + "\n")
        if html is not None:
            with progress_bar(quiet, "diagnosing") as progress:
                try:
                    found = deltamend.diagnose(
                        pair, out_dtype=plan.options.out_dtype, workers=workers, progress=progress
                    )
                    write_whole(html, render_diagnosis_page(found))
                except DeltamendError as error:
                    raise OutputError(f"{html}: the page is missing, {plan.out} is whole ({error})") from error


def _folders(given: RepairConfig, named: list[str], config: Path | None) -> tuple[str, str, str]:
    """BASE, FINETUNED and OUT: three on the command line, or with a config OUT alone or none."""
    if len(named) == 3:
        return named[0], named[1], named[2]
    if config is None or len(named) == 2:
        raise UsageError(
            f"give BASE, FINETUNED and OUT, or --config FILE with base_model, finetuned_model and out; {_EXAMPLE}"
        )
    out = named[0] if named else given.out
    for key, value in (("base_model", given.base_model), ("finetuned_model", given.finetuned), ("out", out)):
        if value is None:
            raise UsageError(f"{config}: {key} is missing; add it, or give it on the command line")
    return str(given.base_model), str(given.finetuned), str(out)


def _asked(given: RepairConfig, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the config, with those of the command line in their place; a method leaves the config's parameters."""
    asked = options_of(given)
    flags = given_options(chosen)
    parameters = parameters_of(flags.pop("parameters", ()))
    if "method" in flags:
        asked.pop("parameters", None)
    if parameters:
        parameters = {**asked.get("parameters", {}), **parameters}
        asked["parameters"] = parameters
    return {**asked, **flags}


def _say_what_auto_is(console: Console, plan: RepairPlan, *, quiet: bool) -> None:
    advice = plan.recommendation
    if advice is None:
        return
    if advice.fallback and quiet:  # another method than was asked for is no news to be quiet about
        typer.echo(f"auto: {advice.reason}", err=True)
    console.print(f"auto: {advice.reason}")


def _dry_run(
    console: Console,
    plan: RepairPlan,
    workers: int | None,
    verbose: int,
    *,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    if resume and published_manifest(plan) is not None:
        console.print(f"{plan.out} is complete already; there is nothing to do")
        return
    check_output(plan.out, plan.inputs, overwrite=overwrite)
    count = workers or len(os.sched_getaffinity(0))
    print_plan(console, plan, count, verbose)
    if as_json:
        sys.stdout.write(json.dumps(plan.described(count), indent=1) + "\n")


def _check_page(page: Path, out: Path, pair: OpenPair) -> None:
    """Refuse a page that cannot be made or written, while OUT is as it was.

    Raises:
        OutputError: its folder is not there or cannot be written to, or it lies in OUT or an input.
        UsageError: the diagnosis has no matrix.
    """
    folder = Path(os.path.realpath(page.parent))
    _refuse_inside(page, [out, *pair.base.folders, *pair.finetuned.folders])
    if not folder.is_dir() or page.is_dir():
        wrong = "is a folder" if page.is_dir() else f"there is no folder {page.parent}"
        raise OutputError(f"{page}: cannot be written ({wrong}); give --html a file in a folder that exists")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{page}: cannot be written (no permission in {folder}); give --html another folder")
    refuse_nothing_to_diagnose(pair)


def _refuse_inside(page: Path, places: Iterable[Path]) -> None:
    """Raise OutputError when the page would lie in one of the places, or take the place of one."""
    written = Path(os.path.realpath(page.parent)) / page.name
    for place in places:
        if written.is_relative_to(os.path.realpath(place)):
            raise OutputError(f"{page}: lies inside {place}; give --html a place outside OUT and the inputs")
