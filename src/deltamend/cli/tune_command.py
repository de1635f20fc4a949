"""`deltamend tune`: the method and strength with the best combined score, chosen on one half of the items."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import deltamend.choosing.search as tuning
from deltamend.cli.score_command import print_tables
from deltamend.cli.terminal import progress_bar
from deltamend.errors import UsageError
from deltamend.evaluation.record import Evaluation
from deltamend.evaluation.suite import Suite, read_suite, suite_of_tasks, tasks_with_folders
from deltamend.machine.atomic import write_whole
from deltamend.report.score_page import render_score_page
from deltamend.report.score_tables import Table, tables_of_score, undefined_figures, weak_figures
from deltamend.scoring.settings import make_settings

_STRENGTHS = ",".join(f"{strength:g}" for strength in tuning.STRENGTHS)


def tune(
    base: Annotated[Path, typer.Argument(help="Folder of the checkpoint fine-tuning started from.")],
    finetuned: Annotated[Path, typer.Argument(help="Folder of its fine-tuned descendant.")],
    target: Annotated[str, typer.Option(help="The task the model was fine-tuned for; one of the suite's.")],
    suite: Annotated[
        list[str] | None, typer.Option(metavar="SUITE", help="As for `deltamend evaluate`; repeatable.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="As for `deltamend evaluate`; repeatable.")
    ] = None,
    methods: Annotated[str, typer.Option(help="Names with commas between.")] = ",".join(tuning.METHODS),
    strengths: Annotated[
        str, typer.Option(help="Factors on what a method keeps, in the order to try them.")
    ] = _STRENGTHS,
    patience: Annotated[int, typer.Option(help="Strengths without a better score after which a method is left.")] = 1,
    limit: Annotated[int | None, typer.Option(help="Items of each benchmark.")] = None,
    margin: Annotated[str, typer.Option(help="What counts as a change: 1se, 2se, or a distance such as 0.02.")] = "1se",
    seed: Annotated[int, typer.Option(help="Of the evaluation and of the bootstrap.")] = 0,
    device: Annotated[str | None, typer.Option(help="Where models are evaluated, such as cuda:0.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for the candidates; two models must fit.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page of the reporting half.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Search method and strength for the best combined score on one half of the items; report on the other half."""
    if not suite and not task:
        raise UsageError("give --suite or --task")
    try:
        factors = [float(text) for text in strengths.split(",")]
    except ValueError:
        raise UsageError(f"--strengths {strengths!r}: give numbers with commas between, such as 1,0.8,0.6") from None
    suites = [read_suite(reference) for reference in suite or []] + ([suite_of_tasks(task)] if task else [])
    tuning.check_target(target, [entry.name for entry, _ in tasks_with_folders(suites)])
    with progress_bar(quiet, "tuning") as progress, tempfile.TemporaryDirectory(dir=work) as records:
        found = tuning.tune(
            base,
            finetuned,
            _evaluator(suites, Path(records), limit=limit, seed=seed, device=device),
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
        typer.echo(found.model_dump_json(indent=1))
        return
    console = Console(quiet=quiet, highlight=False)
    notes = (*undefined_figures(found.reporting), *weak_figures(found.reporting), *found.reporting.notes)
    print_tables(console, [_trials(found), *tables_of_score(found.reporting)], notes)
    if found.stopped:
        console.print(f"not tried, as the score had fallen: {', '.join(found.stopped)}", markup=False)
    console.print(f"chosen: {found.chosen}; to make it:\n{found.command}", markup=False, soft_wrap=True)


def _trials(found: tuning.Tuning) -> Table:
    def text(value: float | None, decimals: int) -> str:
        return "undefined" if value is None else f"{value:.{decimals}f}"

    return Table(
        "Candidates, on the half that chooses",
        ("candidate", "healing", "retention", "combined", ""),
        tuple(
            (
                trial.name,
                text(trial.healing, 2),
                text(trial.retention, 2),
                text(trial.combined, 1),
                "chosen" if trial.name == found.chosen else "on the front" if trial.name in found.front else "",
            )
            for trial in found.trials
        ),
    )


def _evaluator(
    suites: list[Suite], records: Path, *, limit: int | None, seed: int, device: str | None
) -> Callable[[Path], Evaluation]:
    """What `deltamend evaluate` does, for one model after another."""
    # Late, as the evaluator brings heavy libraries.
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
