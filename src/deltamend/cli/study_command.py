"""`deltamend study`: fine-tune, repair with every method, evaluate and score, over a grid."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from deltamend.checkpoint.output_checks import refuse_inside
from deltamend.cli.terminal import PlainConsole, PlainTable
from deltamend.errors import DeltamendError, EvaluationError, OutputError, UsageError

if TYPE_CHECKING:
    from deltamend.study.config import Study


def study(
    config: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    out: Annotated[
        Path, typer.Argument(help="Folder of the study's records and results; a run continues from what it holds.")
    ],
    data: Annotated[Path | None, typer.Option(help="Folder with the JSONL files that the study reads.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Read the study's model NAME from this folder or GGUF file, not from the hub; may be given several times.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of cells run at a time; by default one for each core, or one where there is an accelerator.",
        ),
    ] = None,
    cells: Annotated[
        str | None, typer.Option(help="Run only the cells whose name this regular expression matches.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Start no new cell after this many minutes.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what is done, what is left to do and what would fail, and run nothing."),
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Run nothing: score the records that exist and write the results.")
    ] = False,
    draws: Annotated[int, typer.Option(help="Number of bootstrap resamples.")] = 2000,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Run a study, or what is left of it, and write its results into OUT/results."""
    # Late, as the evaluator brings heavy libraries.
    from deltamend.scoring.settings import make_settings
    from deltamend.study.config import read_study
    from deltamend.study.local_models import with_local_models

    make_settings(draws=draws)  # refused now rather than after the run
    found = with_local_models(read_study(config), model or [])
    refuse_inside(out, [Path(one.local or one.source) for one in found.models])
    console = PlainConsole(quiet=quiet)
    if dry_run:
        _show_state(console, found, out, data)
        return
    if not report:
        from deltamend.study.run import run_study

        try:
            with _bars(quiet) as seen:
                chosen = _chooser(cells)
                run_study(found, out, data=data, workers=workers, cells=chosen, minutes=minutes, progress=seen)
        except (OutputError, UsageError):  # nothing was run
            raise
        except DeltamendError:
            with suppress(EvaluationError):  # no cell is done yet
                _write_results(console, found, out, draws)
            raise
    _write_results(console, found, out, draws)


def _write_results(console: PlainConsole, found: Study, out: Path, draws: int) -> None:
    from deltamend.report.study_page import write_results
    from deltamend.study.findings.results import study_results

    write_results(study_results(found, out, draws=draws), out / "results")
    console.print(f"wrote {out / 'results' / 'README.md'} and index.html beside it")


def _show_state(console: PlainConsole, found: Study, out: Path, data: Path | None) -> None:
    from deltamend.study.run import study_state

    state = study_state(found, out, data)
    table = PlainTable("cell", "", "models asked", "of")
    for cell in state.cells:
        table.add_row(cell.cell, "chooses" if cell.chooses else "confirms", str(cell.done), str(cell.models))
    console.print(table)
    console.print(f"{state.left} models left to ask; of {state.bases} bases {state.bases_done} are done")
    for problem in state.problems:
        console.print(f"would fail here: {problem}")


def _chooser(cells: str | None) -> Callable[[str], bool] | None:
    if cells is None:
        return None
    try:
        pattern = re.compile(cells)
    except re.error as error:
        raise UsageError(f"--cells {cells!r}: is not a regular expression ({error}); correct it") from error
    return lambda name: pattern.search(name) is not None


@contextmanager
def _bars(quiet: bool) -> Iterator[Callable[[str, str, float], None]]:
    """A bar for each cell that runs."""
    columns = (TextColumn("{task.description:<64}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=PlainConsole(stderr=True), disable=quiet) as progress:
        bars: dict[str, TaskID] = {}

        def report_progress(cell: str, what: str, share: float) -> None:
            if cell not in bars:
                bars[cell] = progress.add_task(cell, total=1.0)
            progress.update(bars[cell], description=f"{cell}: {what}", completed=share)

        yield report_progress
