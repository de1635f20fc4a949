"""Evaluate one model on suites of benchmarks, through lm-evaluation-harness; finished benchmarks survive an interruption."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamend.checkpoint.hashing import hash_file
from deltamend.checkpoint.output_checks import check_output_file
from deltamend.errors import EvaluationError, OutputError, UsageError, option
from deltamend.evaluation.backend import BackendOptions, best_device, check_device, open_backend
from deltamend.evaluation.judges import OPENAI_URL, judge_named
from deltamend.evaluation.lm_eval_tasks import TaskLoader, check_requirements, files_of
from deltamend.evaluation.model_source import ModelSource, find_model, runs_here
from deltamend.evaluation.one_benchmark import AskOptions, ask_benchmark, template_hash
from deltamend.evaluation.record import Evaluation, read_evaluation, write_evaluation
from deltamend.evaluation.rubrics import RUBRICS
from deltamend.evaluation.suite import Suite, SuiteTask, chosen_suites, tasks_with_folders
from deltamend.evaluation.third_party_output import third_parties_quiet
from deltamend.evaluation.unfinished_run import FinishedBenchmark, read_finished, work_file, write_finished
from deltamend.machine.digests import json_sha256
from deltamend.machine.templates import limited_templates
from deltamend.machine.versions import installed_versions
from deltamend.progress import Progress, ignore_progress

_SECRET = re.compile(r"key|token|credential|secret|password|auth|header", re.IGNORECASE)
"""Names of a backend's arguments whose values are not written down."""
_USER = re.compile(r"(?<=://)[^/@\s]*@")
"""A user name and password inside a URL, which are not written down either."""
RESPONSES = "responses"
"""Key of the settings of a record that holds generated answers."""
_PACKAGES = ("deltamend", "lm_eval", "torch", "transformers", "datasets", "vllm")


@dataclass(frozen=True)
class EvaluationRun:
    """What came of a run.

    Attributes:
        evaluation: the record, as in OUT.
        kept: benchmarks taken over from an interrupted run.
        without_template: benchmarks that the suite wants asked through the chat template, which the model does not have.
        written: whether OUT was written; False where it was complete already, or none was wanted.
    """

    evaluation: Evaluation
    kept: tuple[str, ...] = ()
    without_template: tuple[str, ...] = ()
    written: bool = True


def evaluate(
    model: str | os.PathLike[str],
    *,
    suite: str | Suite | Sequence[str | Suite] = (),
    task: str | Sequence[str] = (),
    skip: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    backend: str = "hf",
    backend_args: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
    judge: str = "refusal-strings",
    judge_url: str = OPENAI_URL,
    keep_responses: bool = False,
    trust_remote_code: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask a model the benchmarks of suites through lm-evaluation-harness, and return what every item scored.

    Args:
        model: the folder of a checkpoint, a hub id or a GGUF file; other backends take the name that they know.
        suite: "paper", "quick", "safety", the path of a YAML file, any of these with local items as "SUITE:DIR", or a `Suite`;
            one or several.
        task: JSONL files with items of your own, or names of tasks that lm-eval knows; one or several.
        skip: names of benchmarks of the suites to leave out.
        out: file for the record, JSON, packed with gzip where the name ends in ".gz". Each benchmark that is finished is kept
            in `.OUT.deltamend-partial.json` beside it until it is complete. None to write nothing.
        limit: number of items of each benchmark, spread evenly over it; None for all.
        seed: of sampling and of the choice of worked examples, 0 to 2**32 - 1.
        backend: lm-eval's name of what runs the model: "hf" for transformers, "vllm", …
        backend_args: arguments for the backend's constructor.
        batch_size: number of sequences in a batch; None to choose it automatically.
        device: such as "cpu" or "cuda:0"; None for CUDA where there is one.
        dtype: of the weights: "auto" (as stored; float32 on a CPU without bf16 arithmetic), "bfloat16", "float16" or "float32".
        judge: what scores answers to safety prompts: "refusal-strings" (weak), "openai:MODEL" or "classifier:MODEL".
        judge_url: OpenAI-compatible endpoint of "openai:MODEL"; its key is taken from the variable OPENAI_API_KEY.
        keep_responses: store generated answers in the record, harmful ones too.
        trust_remote_code: run Python code that comes with the model.
        resume: continue an interrupted run to `out`; benchmarks whose inputs and settings still agree are not asked again.
        overwrite: replace `out`.
        progress: called as work goes on.

    Returns:
        The record: for each benchmark its metric and, for each item, the score (higher is better; 0 to 1 for accuracies,
        log2 of a probability per byte for likelihoods) and the log-likelihoods of the choices in nats.

    Raises:
        UsageError: no suite or task is given, there is none of a name, or an option has an invalid value.
        OutputError: `out` exists and neither `overwrite` nor `resume` is given, or it cannot be written.
        EvaluationError: lm-eval is not installed, the model or a benchmark cannot be loaded, or a score is not finite.

    Source: the benchmarks, prompts and metrics are lm-evaluation-harness's; the suites and the safety rubrics name theirs.
    """
    return run_benchmarks(
        str(model),
        chosen_suites(suite, task, skip),
        None if out is None else Path(out),
        backend=BackendOptions(
            name=backend,
            arguments=backend_args,
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
    ).evaluation


def run_benchmarks(
    model: str,
    suites: Sequence[Suite],
    out: Path | None = None,
    *,
    backend: BackendOptions | None = None,
    asking: AskOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EvaluationRun:
    """What `evaluate` does, with what there is to say of the run beside its record.

    Benchmarks are asked one after another. Each that is finished is kept beside OUT, with a hash of everything that its
    figures depend on, until OUT is complete; with `resume` those whose hash still agrees are not asked again.

    Raises:
        UsageError: an option has an invalid value, or two suites have a benchmark of one name.
        OutputError: OUT exists and neither `overwrite` nor `resume` is given, or cannot be written.
        EvaluationError: the model or a benchmark cannot be loaded, or a score is not finite.
    """
    backend, asking = backend or BackendOptions(), asking or AskOptions()
    entries = tasks_with_folders(suites)
    for entry, _ in entries:  # what cannot be asked or judged is said before anything runs
        check_requirements(entry)
        if entry.task in RUBRICS:
            asking.judge.metric(entry.task)
    files = {entry.name: files_of(entry, folders) for entry, folders in entries}
    read = [path for one in files.values() for path in one]
    _check_out(out, [Path(model), *read], resume=resume, overwrite=overwrite)
    _need_lm_eval()
    overall = _ProgressOfAll(progress or ignore_progress, len(entries))
    if runs_here(backend.name):
        check_device(backend.device)
    overall.doing("reading the model's files")
    source = find_model(model, backend.name)
    if out is not None:
        check_output_file(out, [Path(source.name)], overwrite=True)  # what an id of the hub was fetched to
    header = _header(model, suites, backend, asking, source)
    keys = {
        entry.name: json_sha256(
            [
                header,
                source.other_files,
                entry.model_dump(),
                [hash_file(path, path.name).sha256 for path in files[entry.name]],
            ]
        )
        for entry, _ in entries
    }
    if out is not None and resume and not overwrite and out.exists():
        return _complete_already(out, keys)
    left = read_finished(work_file(out)) if out is not None and resume else {}
    finished = {name: done for name, done in left.items() if keys.get(name) == done.key}
    kept = tuple(finished)
    waiting = [(entry, folders) for entry, folders in entries if entry.name not in finished]
    if waiting:
        _ask_waiting(source, waiting, finished, keys, out, backend=backend, asking=asking, overall=overall)
    evaluation = _record(header, [entry for entry, _ in entries], finished)
    if out is not None:
        write_evaluation(evaluation, out)
        work_file(out).unlink(missing_ok=True)
    without = tuple(entry.name for entry, _ in entries if entry.chat and finished[entry.name].template_hash is None)
    return EvaluationRun(evaluation, kept, without, written=out is not None)


def _ask_waiting(
    source: ModelSource,
    waiting: Sequence[tuple[SuiteTask, tuple[Path, ...]]],
    finished: dict[str, FinishedBenchmark],
    keys: Mapping[str, str],
    out: Path | None,
    *,
    backend: BackendOptions,
    asking: AskOptions,
    overall: _ProgressOfAll,
) -> None:
    """Ask what is not finished yet; each benchmark is added to `finished`, and written down, as soon as it is done."""
    with third_parties_quiet(), limited_templates():
        overall.doing("loading the model", len(finished))
        loader, lm = TaskLoader(), open_backend(source.name, backend, overall.within)
        for entry, folders in waiting:
            overall.doing(entry.name, len(finished))
            scores = ask_benchmark(lm, loader.load(entry, folders), asking)
            template = template_hash(lm) if entry.chat else None
            finished[entry.name] = FinishedBenchmark(key=keys[entry.name], template_hash=template, scores=scores)
            if out is not None:
                write_finished(work_file(out), finished)


def _record(
    header: Mapping[str, Any], entries: Sequence[SuiteTask], finished: Mapping[str, FinishedBenchmark]
) -> Evaluation:
    templates = {done.template_hash for done in finished.values()} - {None}
    tasks = {
        entry.name: finished[entry.name].scores.model_copy(update={"key": finished[entry.name].key}).model_dump()
        for entry in entries
    }
    return Evaluation.model_validate({**header, "template_hash": next(iter(templates), None), "tasks": tasks})


def _complete_already(out: Path, keys: Mapping[str, str]) -> EvaluationRun:
    """The record that OUT holds.

    Raises:
        OutputError: it is of a run with another model, other items or other settings.
    """
    whole = read_evaluation(out)
    if {name: scores.key for name, scores in whole.tasks.items()} != keys:
        raise OutputError(
            f"{out}: already exists, from a different run; give another name, or {option('overwrite', 'True')}"
        )
    return EvaluationRun(whole, written=False)


class _ProgressOfAll:
    """Turns what is done of one benchmark into what is done of all."""

    def __init__(self, progress: Progress, benchmarks: int) -> None:
        self._progress = progress
        self._benchmarks = benchmarks
        self._name, self._done = "", 0

    def doing(self, name: str, done: int = 0) -> None:
        self._name, self._done = name, done
        self.within(0.0)

    def within(self, share: float) -> None:
        self._progress(self._name, (self._done + share) / self._benchmarks)


def _header(
    model: str, suites: Sequence[Suite], backend: BackendOptions, asking: AskOptions, source: ModelSource
) -> dict[str, Any]:
    """The fields of the record that are not scores; every score depends on all of them."""
    return {
        "model": model,
        "model_hash": source.weights_hash,
        "suite": "+".join(suite.name for suite in suites),
        "suite_version": "+".join(suite.version for suite in suites),
        "limit": asking.limit,
        "seed": asking.seed,
        "settings": _settings(backend, asking, local=source.weights_hash is not None),
        "versions": installed_versions(_PACKAGES),
    }


def _settings(backend: BackendOptions, asking: AskOptions, *, local: bool) -> dict[str, str]:
    settings = {"backend": backend.name, "dtype": backend.computed_dtype, "judge": asking.judge.name}
    settings |= {"device": backend.device or best_device()} if local else {}
    settings |= {
        f"backend.{key}": "not shown" if _SECRET.search(key) else _USER.sub("", str(value))
        for key, value in (backend.arguments or {}).items()
    }
    settings |= {"trust_remote_code": "yes"} if backend.trust_remote_code else {}
    return settings | ({RESPONSES: "kept"} if asking.keep_responses else {})


def _check_out(out: Path | None, inputs: Sequence[Path], *, resume: bool, overwrite: bool) -> None:
    if out is None:
        if resume:
            raise UsageError(
                f"{option('resume', 'True')}: there is nothing to continue without {option('out')}; give both"
            )
        return
    if out.exists() and not (resume or overwrite):
        raise OutputError(f"{out}: already exists; give another name, or {option('overwrite', 'True')}")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise OutputError(
            f"{out}: is a folder, or lies in a folder that does not exist; give the name of a file in an existing folder"
        )
    check_output_file(out, inputs, overwrite=True)


def _need_lm_eval() -> None:
    try:
        importlib.import_module("lm_eval")
    except ImportError as error:
        raise EvaluationError(f"evaluation needs lm-eval ({error}): pip install 'deltamend[eval]'") from error
