"""`deltamend evaluate`: what a model scores, item by item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column

from deltamend.checkpoint.output_checks import check_output_files
from deltamend.cli.options import parameters_of
from deltamend.cli.terminal import PlainConsole, PlainTable, echo_json, progress_bar
from deltamend.errors import UsageError
from deltamend.evaluation.backend import BackendOptions
from deltamend.evaluation.judges import OPENAI_URL, judge_named
from deltamend.evaluation.one_benchmark import AskOptions
from deltamend.evaluation.record import Evaluation
from deltamend.evaluation.run import run_benchmarks
from deltamend.evaluation.suite import chosen_suites, files_of_suites
from deltamend.machine.yaml_text import YamlError, parse_yaml


def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="Folder of a checkpoint, a hub id or a GGUF file; other backends take the name they know."),
    ],
    out: Annotated[Path, typer.Option(help="JSON file to write; it is packed with gzip where its name ends in .gz.")],
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUITE",
            help="paper, quick, safety, or a YAML file; SUITE:DIR takes the items from files in DIR. May be given several times.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK",
            help="A JSONL file with items of your own, or the name of an lm-eval task. May be given several times.",
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A benchmark of the suite to leave out. May be given several times."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Number of items of each benchmark, spread evenly over it; by default all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampling and of the choice of worked examples.")] = 0,
    backend: Annotated[str, typer.Option(help="What runs the model, by lm-eval's name, such as hf or vllm.")] = "hf",
    backend_args: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="An argument for the backend's constructor. May be given several times."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Number of sequences in a batch; chosen automatically by default.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where the model runs, such as cpu or cuda:0; by default CUDA where there is one."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Dtype of the weights: auto (as stored, or float32 on a CPU without bf16 arithmetic), bfloat16, float16 or float32."
        ),
    ] = "auto",
    judge: Annotated[
        str,
        typer.Option(
            help="What scores answers to safety prompts: refusal-strings (weak), openai:MODEL or classifier:MODEL."
        ),
    ] = "refusal-strings",
    judge_url: Annotated[
        str, typer.Option(help="OpenAI-compatible endpoint of openai:MODEL; its key is taken from OPENAI_API_KEY.")
    ] = OPENAI_URL,
    keep_responses: Annotated[
        bool, typer.Option("--keep-responses", help="Store generated answers in the record, harmful ones too.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with MODEL.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run with the same options.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Ask MODEL the benchmarks of a suite, through lm-evaluation-harness, and write what every item scored."""
    suites = chosen_suites(suite or (), task or (), skip or ())
    check_output_files({"out": out}, files_of_suites(suite or [], suites))
    on = BackendOptions(backend, _backend_arguments(backend_args or []), batch_size, device, dtype, trust_remote_code)
    judged_by = judge_named(judge, url=judge_url, device=device or "cpu")
    asking = AskOptions(limit=limit, seed=seed, judge=judged_by, keep_responses=keep_responses)
    with progress_bar(quiet, "evaluating") as progress:
        run = run_benchmarks(
            model, suites, out, backend=on, asking=asking, resume=resume, overwrite=overwrite, progress=progress
        )
    console = PlainConsole(stderr=as_json, quiet=quiet, soft_wrap=True)
    _print_figures(console, run.evaluation)
    if run.kept:
        console.print(f"taken over from the interrupted run: {', '.join(run.kept)}")
    if run.without_template:
        console.print(f"MODEL has no chat template; asked without one: {', '.join(run.without_template)}")
    console.print(f"wrote {out}" if run.written else f"{out} is complete already")
    if as_json:
        echo_json(_summary(run.evaluation))


def _backend_arguments(settings: list[str]) -> dict[str, object]:
    """What `--backend-args` gives; a value is read as YAML, so that 512 is a number and true is a truth."""
    given = parameters_of(settings, "--backend-args")
    try:
        return {key: parse_yaml(value) if isinstance(value, str) else value for key, value in given.items()}
    except YamlError as error:
        raise UsageError(f"--backend-args: a value is not YAML ({error}); quote it") from error


def _print_figures(console: PlainConsole, evaluation: Evaluation) -> None:
    table = PlainTable(Column("benchmark", overflow="fold"), "metric", "mean", "± se", "items", "chance")
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
