"""`deltamend tune`: search for the method and strength with the best score, chosen on one half of the items."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

import deltamend.choosing.search as tuning
from deltamend.checkpoint.output_checks import check_output_files, refuse_inside
from deltamend.cli.score_command import print_tables
from deltamend.cli.terminal import PlainConsole, echo_json, progress_bar
from deltamend.errors import UsageError
from deltamend.evaluation.record import Evaluation
from deltamend.evaluation.suite import Suite, files_of_suites, read_suite, suite_of_tasks, tasks_with_folders
from deltamend.machine.atomic import write_whole
from deltamend.machine.temporary_folders import temporary_folder
from deltamend.report.score_page import render_score_page
from deltamend.report.score_tables import Table, tables_of_score, undefined_figures, weak_figures
from deltamend.scoring.settings import make_settings

EXAMPLES = """\b
Examples:
  deltamend tune BASE FINETUNED --suite quick --task sums.jsonl --target sums
  deltamend tune BASE FINETUNED --suite suite.yaml --target sums --methods dg-hard,wise-ft --strengths 1,0.7,0.4
"""

_STRENGTHS = ",".join(f"{strength:g}" for strength in tuning.STRENGTHS)


def tune(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="The folder of the checkpoint that fine-tuning started from.")
    ],
    finetuned: Annotated[Path, typer.Argument(metavar="FINETUNED", help="The folder of the fine-tuned checkpoint.")],
    target: Annotated[
        str,
        typer.Option(
            metavar="TASK", help="The task that the model was fine-tuned for; it must be one of those evaluated."
        ),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUITE", help="Evaluate this suite, as `deltamend evaluate` does. May be given several times."
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK", help="Evaluate this task, as `deltamend evaluate` does. May be given several times."
        ),
    ] = None,
    methods: Annotated[
        str, typer.Option(metavar="LIST", help="Names of the methods to try, separated by commas.")
    ] = ",".join(tuning.METHODS),
    strengths: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Strengths to try, in this order, separated by commas: factors on the update that a method keeps, above 0 and up "
            "to 1.",
        ),
    ] = _STRENGTHS,
    patience: Annotated[
        int,
        typer.Option(
            metavar="NUMBER",
            help="Give a method up after this number of strengths in a row that did not improve its score.",
        ),
    ] = 1,
    limit: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Evaluate at most this number of items of each benchmark.")
    ] = None,
    margin: Annotated[
        str,
        typer.Option(
            metavar="MARGIN",
            help="The smallest change of a benchmark that counts: 1se or 2se (standard errors), or a distance such as 0.02.",
        ),
    ] = "1se",
    seed: Annotated[
        int, typer.Option(metavar="NUMBER", help="Random seed of the evaluation and of the bootstrap.")
    ] = 0,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE", help="Where models are evaluated, such as cuda:0; chosen automatically by default."
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for temporary models, with space for two; by default the system's temporary folder.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the score on the reporting half as an HTML page.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Search for the method and strength with the best combined score.

    Each candidate is written, evaluated and deleted again. The items of every benchmark are split into halves: the scores on one
    half choose the candidate, and the other half, which had no part in the choice, tells what it is worth. The last line printed
    is the command that makes the chosen model.
    """
    if not suite and not task:
        raise UsageError("there is nothing to evaluate; give --suite or --task")
    try:
        factors = [float(text) for text in strengths.split(",")]
    except ValueError:
        raise UsageError(f"--strengths {strengths!r}: give numbers separated by commas, such as 1,0.8,0.6") from None
    suites = [read_suite(reference) for reference in suite or []] + ([suite_of_tasks(task)] if task else [])
    tuning.check_target(target, [entry.name for entry, _ in tasks_with_folders(suites)])
    check_output_files({"html": html}, [base, finetuned, *files_of_suites(suite or [], suites)])
    if work is not None:
        refuse_inside(work, [base, finetuned])
    with progress_bar(quiet, "tuning") as progress, temporary_folder(work) as records:
        found = tuning.tune(
            base,
            finetuned,
            _evaluator(suites, records, limit=limit, seed=seed, device=device),
            target=target,
            methods=[name.strip() for name in methods.split(",") if name.strip()],
            strengths=factors,
            patience=patience,
            settings=make_settings(margin=margin, seed=seed),
            work=work,
            progress=progress,
        )
    if html is not None:
        write_whole(html, render_score_page(found.reporting))
    if as_json:
        echo_json(found.model_dump_json(indent=1))
        return
    console = PlainConsole(quiet=quiet)
    notes = (*undefined_figures(found.reporting), *weak_figures(found.reporting), *found.reporting.notes)
    print_tables(console, [_trials(found), *tables_of_score(found.reporting)], notes)
    if found.stopped:
        console.print(f"not tried, because the score had already fallen: {', '.join(found.stopped)}")
    console.print(f"chosen: {found.chosen}; this command makes it:", soft_wrap=True)
    console.print(found.command, soft_wrap=True)


def _trials(found: tuning.Tuning) -> Table:
    def text(value: float | None, decimals: int) -> str:
        return "undefined" if value is None else f"{value:.{decimals}f}"

    return Table(
        "Candidates, scored on the half of the items that chooses",
        ("candidate", "healing", "retention", "combined", ""),
        tuple(
            (
                trial.name,
                text(trial.healing, 2),
                text(trial.retention, 2),
                text(trial.combined, 1),
                "chosen" if trial.name == found.chosen else "Pareto-optimal" if trial.name in found.front else "",
            )
            for trial in found.trials
        ),
    )


def _evaluator(
    suites: list[Suite], records: Path, *, limit: int | None, seed: int, device: str | None
) -> Callable[[Path], Evaluation]:
    """A function that evaluates the model in a folder, as `deltamend evaluate` does."""
    # Imported only here, because the evaluation needs libraries that take long to import.
    from deltamend.evaluation.backend import BackendOptions
    from deltamend.evaluation.one_benchmark import AskOptions
    from deltamend.evaluation.run import run_benchmarks

    def evaluate(model: Path) -> Evaluation:
        return run_benchmarks(
            str(model),
            suites,
            records / "record.json.gz",
            backend=BackendOptions(device=device),
            asking=AskOptions(limit=limit, seed=seed),
            overwrite=True,
        ).evaluation

    return evaluate
