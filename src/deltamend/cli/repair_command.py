"""`deltamend repair`: repair a fine-tuned model, or show what a repair would do."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import deltamend
from deltamend._api import check_methods
from deltamend.checkpoint.output_checks import check_output, check_output_files
from deltamend.cli.options import given_options, parameters_of, with_options
from deltamend.cli.repair_output import print_plan, print_report
from deltamend.cli.terminal import PlainConsole, echo, echo_json, progress_bar
from deltamend.diagnosis.update import refuse_nothing_to_diagnose
from deltamend.errors import DeltamendError, OutputError, UsageError
from deltamend.machine.atomic import write_whole
from deltamend.repairing.options import AUTO, PairOptions, RepairOptions, make_options, opened_pair
from deltamend.repairing.plan import RepairPlan
from deltamend.repairing.run import published_manifest
from deltamend.repairing.yaml_config import RepairConfig, options_of, read_config
from deltamend.report.diagnosis_page import render_diagnosis_page

EXAMPLES = """\b
Examples:
  deltamend repair BASE FINETUNED OUT --method auto
      use the recommended method
  deltamend repair BASE FINETUNED OUT --method wise-ft --set alpha=0.5
      go half of the way from BASE to FINETUNED
  deltamend repair BASE FINETUNED OUT --as adapter
      write a LoRA adapter to BASE, which loses nothing by rounding
  deltamend repair BASE FINETUNED OUT --exclude embed --dry-run
      show what would be done, how long it would take and how much memory
"""
_EXAMPLE = "for example: deltamend repair ./base ./finetuned ./repaired --method auto"


@with_options(RepairOptions)
def repair(
    base: Annotated[
        str | None,
        typer.Argument(
            metavar="BASE",
            help="The checkpoint that fine-tuning started from: a folder, a hub id org/name@revision, or a GGUF file.",
        ),
    ] = None,
    finetuned: Annotated[
        str | None,
        typer.Argument(
            metavar="FINETUNED",
            help="The fine-tuned checkpoint, likewise; or MODEL+ADAPTER for a model with a LoRA adapter.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Argument(metavar="OUT", help="The folder to write. It appears once it is complete, or not at all."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read options from a YAML file, which may also hold base_model, finetuned_model and out. Options that are "
            "given on the command line take precedence.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where spectral filters are computed: cpu, or a GPU such as cuda.")
    ] = "cpu",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="NUMBER",
            help="Number of tensors worked on at a time; by default one for each core. It does not change the result.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Write nothing; print what would be done, how long it would take and how much memory."
        ),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run of the same command.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if it exists, once the new output is complete.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also diagnose the update, as `deltamend diagnose --html` does, into this file."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the content of deltamend.json, or the plan of a dry run, as JSON.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            show_default=False,
            help="Print a line for every tensor; -vv also prints the traceback of an error.",
        ),
    ] = 0,
    **chosen: Any,
) -> None:
    """Repair FINETUNED with the help of BASE, and write the result to OUT.

    The update, the difference of FINETUNED and BASE, is filtered matrix by matrix; OUT is BASE plus the filtered update, with the
    tokenizer and config of FINETUNED. OUT/deltamend.json records what was done to every tensor.
    """
    given = RepairConfig.model_validate({}) if config is None else read_config(config)
    folders = _folders(given, [folder for folder in (base, finetuned, out) if folder is not None], config)
    console = PlainConsole(stderr=as_json, quiet=quiet, soft_wrap=True)
    asked = _asked(given, chosen)
    selection = {name: asked.pop(name) for name in PairOptions.model_fields if name in asked}
    check_methods(make_options(RepairOptions, asked), folders[1])  # before anything is opened or downloaded
    with opened_pair(folders[0], folders[1], make_options(PairOptions, selection)) as pair:
        if html is not None:
            refuse_nothing_to_diagnose(pair)
            places = [Path(folders[2]), *pair.base.folders, *pair.finetuned.folders]
            check_output_files({"html": html}, places if config is None else [*places, config])
        with progress_bar(quiet or asked.get("method") != AUTO, "reading BASE and FINETUNED") as progress:
            plan = deltamend.plan_repair(
                pair, out=folders[2], overwrite=overwrite or resume, progress=progress, **asked
            )
        if html is not None:
            check_output_files({"html": html}, list(plan.method_files))
        _print_recommendation(console, plan, quiet=quiet)
        if dry_run:
            _dry_run(console, plan, workers, verbose, resume=resume, overwrite=overwrite, as_json=as_json)
            return
        with progress_bar(quiet, "repairing") as progress:
            report = deltamend.repair(
                plan, device=device, workers=workers, overwrite=overwrite, resume=resume, progress=progress
            )
        print_report(console, report, verbose)
        if report.replaced is not None:  # even a quiet run says what it could not clear away
            echo(f"warning: the older OUT could not be removed; what is left of it is {report.replaced}", err=True)
        if as_json:
            echo_json(report.manifest.model_dump_json(indent=1))
        if html is not None:
            with progress_bar(quiet, "diagnosing") as progress:
                try:
                    found = deltamend.diagnose(
                        pair, out_dtype=plan.options.out_dtype, workers=workers, progress=progress
                    )
                    write_whole(html, render_diagnosis_page(found))
                except DeltamendError as error:
                    raise OutputError(
                        f"{html}: the page was not written ({error}); the repair itself, {plan.out}, is complete"
                    ) from error


def _folders(given: RepairConfig, named: list[str], config: Path | None) -> tuple[str, str, str]:
    """Find BASE, FINETUNED and OUT: all of them on the command line, or with a config only OUT or none of them."""
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
    """Combine the options of the config with those of the command line, which take precedence.

    If the command line names a method, the parameters in the config, which belong to another method, are ignored.
    """
    asked = options_of(given)
    flags = given_options(chosen)
    parameters = parameters_of(flags.pop("parameters", ()))
    if "method" in flags:
        asked.pop("parameters", None)
    if parameters:
        parameters = {**asked.get("parameters", {}), **parameters}
        asked["parameters"] = parameters
    return {**asked, **flags}


def _print_recommendation(console: PlainConsole, plan: RepairPlan, *, quiet: bool) -> None:
    """Print which method `auto` chose, and why."""
    advice = plan.recommendation
    if advice is None:
        return
    line = f"warning: auto: {advice.reason}" if advice.fallback else f"auto: {advice.reason}"
    if advice.fallback and quiet:  # even a quiet run tells that another method than usual was used
        echo(line, err=True)
    console.print(line)


def _dry_run(
    console: PlainConsole,
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
        echo_json(json.dumps(plan.described(count), indent=1))
