"""`deltamend evaluate`: what a model scores, item by item."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Column, Table

from deltamend.cli.options import parameters_of
from deltamend.cli.terminal import progress_bar
from deltamend.errors import UsageError
from deltamend.evaluation.backend import BackendOptions
from deltamend.evaluation.judges import OPENAI_URL, judge_named
from deltamend.evaluation.one_benchmark import AskOptions
from deltamend.evaluation.record import Evaluation
from deltamend.evaluation.run import evaluate as run_evaluation
from deltamend.evaluation.suite import read_suite, suite_of_tasks, without


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder of a checkpoint; other backends take the name they know.")],
    out: Annotated[Path, typer.Option(help="File to write, JSON; packed where it ends in .gz.")],
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUITE", help="paper, quick, safety, a YAML file, or with local items SUITE:DIR; repeatable."
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="A JSONL file of yours, or a task lm-eval knows; repeatable."),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A benchmark of the suite to leave out; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Items of each benchmark, spread evenly over it.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling and of the choice of worked examples.")] = 0,
    backend: Annotated[str, typer.Option(help="What runs the model, by lm-eval's name: hf, vllm, …")] = "hf",
    backend_args: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For the backend's constructor; repeatable.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Sequences in a batch; default: found.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; default: cuda where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (as stored), bfloat16, float16 or float32.")] = "auto",
    judge: Annotated[
        str, typer.Option(help="Of safety answers: refusal-strings (weak), openai:MODEL or classifier:MODEL.")
    ] = "refusal-strings",
    judge_url: Annotated[
        str, typer.Option(help="OpenAI-compatible endpoint of openai:MODEL; its key is taken from OPENAI_API_KEY.")
    ] = OPENAI_URL,
    keep_responses: Annotated[
        bool, typer.Option("--keep-responses", help="Store generated answers, harmful ones too.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python that comes with MODEL.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Ask MODEL the benchmarks of a suite, through lm-evaluation-harness, and write what every item scored."""
    if not suite and not task:
        raise UsageError("give --suite or --task")
    suites = [read_suite(reference) for reference in suite or []] + ([suite_of_tasks(task)] if task else [])
    with progress_bar(quiet, "evaluating") as progress:
        run = run_evaluation(
            model,
            without(suites, skip or []),
            out,
            backend=BackendOptions(
                name=backend,
                arguments=_backend_arguments(backend_args or []),
                batch_size=batch_size,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            ),
            asking=AskOptions(
                limit=limit,
                seed=seed,
                judge=judge_named(judge, url=judge_url, device=device or "cpu"),
                keep_responses=keep_responses,
            ),
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    console = Console(stderr=as_json, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)
    _print_figures(console, run.evaluation)
    if run.kept:
        console.print(f"taken over from the interrupted run: {', '.join(run.kept)}")
    if run.asked_plainly:
        console.print(f"MODEL has no chat template; asked without one: {', '.join(run.asked_plainly)}")
    console.print(f"wrote {out}" if run.written else f"{out} was whole already")
    if as_json:
        sys.stdout.write(_summary(run.evaluation) + "\n")


def _backend_arguments(settings: list[str]) -> dict[str, object]:
    """What `--backend-args` gives; a value is read as YAML, so that 512 is a number and true is a truth."""
    given = parameters_of(settings, "--backend-args")
    try:
        return {key: yaml.safe_load(value) if isinstance(value, str) else value for key, value in given.items()}
    except yaml.YAMLError as error:
        raise UsageError(f"--backend-args: a value is not YAML ({' '.join(str(error).split())}); quote it") from error


def _print_figures(console: Console, evaluation: Evaluation) -> None:
    table = Table(Column("benchmark", overflow="fold"), "metric", "mean", "± se", "items", "chance")
    for name, scores in evaluation.tasks.items():
        metric = scores.metric if scores.weak is None else f"{scores.metric}, weak"
        table.add_row(
            name,
            metric,
            *map(_three_digits, (scores.mean, scores.standard_error)),
            str(len(scores.items)),
            _three_digits(scores.chance),
        )
    console.print(table)
    for weakness in dict.fromkeys(scores.weak for scores in evaluation.tasks.values() if scores.weak is not None):
        console.print(f"weak: {weakness}")


def _three_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _summary(evaluation: Evaluation) -> str:
    """The record as JSON, with the mean of each benchmark in place of its items."""
    content = evaluation.model_dump(mode="json", exclude={"tasks"}, exclude_none=True)
    content["tasks"] = {
        name: {
            **scores.model_dump(mode="json", exclude={"items"}, exclude_none=True),
            "mean": scores.mean,
            "standard_error": scores.standard_error,
            "items": len(scores.items),
        }
        for name, scores in evaluation.tasks.items()
    }
    return json.dumps(content, indent=1)
