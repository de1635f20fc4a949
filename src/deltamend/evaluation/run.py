"""Evaluate one model on suites of benchmarks, through lm-evaluation-harness; finished benchmarks survive an interruption."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from deltamend.checkpoint.hashing import WEIGHT_SUFFIXES, hash_file, hash_folder
from deltamend.errors import EvaluationError, OutputError
from deltamend.evaluation.backend import BackendOptions, best_device, check_device, open_backend
from deltamend.evaluation.lm_eval_tasks import TaskLoader, check_needs, files_of
from deltamend.evaluation.one_benchmark import AskOptions, ask_task, template_hash
from deltamend.evaluation.record import Evaluation, TaskScores, read_evaluation, write_evaluation
from deltamend.evaluation.rubrics import RUBRICS
from deltamend.evaluation.suite import Suite, joined
from deltamend.evaluation.third_party_output import third_parties_quiet
from deltamend.inputs.hub import is_hub_id
from deltamend.inputs.open_models import model_folder
from deltamend.machine.atomic import write_whole
from deltamend.machine.digests import json_sha256
from deltamend.progress import Progress
from deltamend.records import Record

_HF = ("hf", "hf-auto", "huggingface")
_SECRET = re.compile(r"key|token|credential|secret|password|auth|header", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/@\s]*@")
"""Names of constructor arguments that are nobody's business."""
_PACKAGES = ("deltamend", "lm_eval", "torch", "transformers", "datasets", "vllm")


@dataclass(frozen=True)
class EvaluationRun:
    """What came of a run.

    Attributes:
        evaluation: the record, as in OUT.
        kept: benchmarks taken over from an interrupted run.
        asked_plainly: benchmarks that the suite wants asked by the chat template, of which the model has none.
        written: whether OUT was written; it may have been whole already.
    """

    evaluation: Evaluation
    kept: tuple[str, ...] = ()
    asked_plainly: tuple[str, ...] = ()
    written: bool = True


class _Finished(Record):
    """A benchmark that is done, a hash of what its figures depend on, and the chat template that was applied."""

    key: str
    template_hash: str | None = None
    scores: TaskScores


class _Work(Record):
    """What the work file beside OUT holds."""

    tasks: dict[str, _Finished]


class _Source(NamedTuple):
    """A model as the backend wants it, and what identifies it."""

    name: str
    weights_hash: str | None
    other_files: Mapping[str, str]


def evaluate(
    model: str,
    suites: Sequence[Suite],
    out: Path,
    *,
    backend: BackendOptions | None = None,
    asking: AskOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EvaluationRun:
    """Evaluate `model` on the suites and write the record to `out`, packed with gzip where the name ends in .gz.

    Benchmarks are asked one after another. Each that is finished is kept in `.OUT.deltamend-partial.json` beside OUT,
    with a hash of everything its figures depend on, until OUT is whole; with `resume` those whose hash still agrees
    are not asked again.

    Raises:
        UsageError: an option means nothing, or two suites have a benchmark of one name.
        OutputError: OUT exists and neither `overwrite` nor `resume` is given, or cannot be written.
        EvaluationError: the model or a benchmark cannot be loaded, or a score is not a number.
    """
    backend, asking = backend or BackendOptions(), asking or AskOptions()
    entries = joined(suites)
    for entry, _ in entries:  # what cannot be asked or judged is said before anything runs
        check_needs(entry)
        if entry.task in RUBRICS:
            asking.judge.metric(entry.task)
    files = {entry.name: files_of(entry, folders) for entry, folders in entries}
    _check_out(out, may_exist=overwrite or resume)
    _need_lm_eval()
    overall = _ProgressOfAll(progress or (lambda _name, _share: None), len(entries))
    if backend.name in _HF:
        check_device(backend.device)
    overall.doing("reading the model's files")
    source = _resolve(model, backend)
    header = {
        "model": model,
        "model_hash": source.weights_hash,
        "suite": "+".join(suite.name for suite in suites),
        "suite_version": "+".join(suite.version for suite in suites),
        "limit": asking.limit,
        "seed": asking.seed,
        "settings": _settings(backend, asking, local=source.weights_hash is not None),
        "versions": _versions(),
    }
    work_file = out.with_name(f".{out.name}.deltamend-partial.json")
    keys = {
        entry.name: json_sha256(
            [header, source.other_files, entry.model_dump(), [_sha256(path) for path in files[entry.name]]]
        )
        for entry, _ in entries
    }
    if resume and not overwrite and out.exists():
        whole = read_evaluation(out)
        if {name: scores.key for name, scores in whole.tasks.items()} != keys:
            raise OutputError(f"{out}: is there, and of another run; give another name, or --overwrite")
        return EvaluationRun(whole, written=False)
    left = _read_work(work_file) if resume else {}
    finished = {name: done for name, done in left.items() if keys.get(name) == done.key}
    kept = tuple(finished)
    waiting = [(entry, folders) for entry, folders in entries if entry.name not in finished]
    if waiting:
        with third_parties_quiet():
            overall.doing("loading the model", len(finished))
            loader, lm = TaskLoader(), open_backend(source.name, backend, overall.within)
            for entry, folders in waiting:
                overall.doing(entry.name, len(finished))
                scores = ask_task(lm, loader.load(entry, folders), asking)
                finished[entry.name] = _Finished(
                    key=keys[entry.name], template_hash=template_hash(lm) if entry.chat else None, scores=scores
                )
                write_whole(work_file, _Work(tasks=finished).model_dump_json(exclude_none=True))
    templates = {done.template_hash for done in finished.values()} - {None}
    evaluation = Evaluation.model_validate(
        {
            **header,
            "template_hash": next(iter(templates), None),
            "tasks": {
                entry.name: finished[entry.name].scores.model_copy(update={"key": keys[entry.name]}).model_dump()
                for entry, _ in entries
            },
        }
    )
    write_evaluation(evaluation, out)
    work_file.unlink(missing_ok=True)
    plainly = tuple(entry.name for entry, _ in entries if entry.chat and finished[entry.name].template_hash is None)
    return EvaluationRun(evaluation, kept, plainly)


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


def _resolve(model: str, backend: BackendOptions) -> _Source:
    """The one place that says what MODEL is: a folder, a hub id or GGUF file, or a name a backend other than hf knows.

    Raises:
        EvaluationError: hf is to run it, and it is no folder with weights.
    """
    folder = Path(model)
    if not folder.is_dir():
        if backend.name not in _HF:
            return _Source(model, None, {})
        if not (is_hub_id(model) or folder.is_file()):
            raise EvaluationError(f"{model}: no such folder; give the folder of a checkpoint, or a hub id")
        folder = model_folder(model)
    found = hash_folder(folder)
    if found.weights is None:
        raise EvaluationError(
            f"{model}: no weight files ({', '.join(WEIGHT_SUFFIXES)}) in it; give the folder of a checkpoint"
        )
    return _Source(str(folder.absolute()), found.weights, found.other_files)


def _sha256(path: Path) -> str:
    return hash_file(path, path.name).sha256


def _settings(backend: BackendOptions, asking: AskOptions, *, local: bool) -> dict[str, str]:
    settings = {"backend": backend.name, "dtype": backend.dtype, "judge": asking.judge.name}
    settings |= {"device": backend.device or best_device()} if local else {}
    settings |= {
        f"backend.{key}": "not shown" if _SECRET.search(key) else _USER.sub("", str(value))
        for key, value in (backend.arguments or {}).items()
    }
    settings |= {"trust_remote_code": "yes"} if backend.trust_remote_code else {}
    return settings | ({"responses": "kept"} if asking.keep_responses else {})


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _check_out(out: Path, *, may_exist: bool) -> None:
    if out.exists() and not may_exist:
        raise OutputError(f"{out}: exists; give another name, or --overwrite")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise OutputError(
            f"{out}: is a folder, or its folder does not exist; give the name of a file in a folder that is there"
        )


def _read_work(path: Path) -> dict[str, _Finished]:
    """What an interrupted run had finished; nothing where it left nothing.

    Raises:
        OutputError: the work file is damaged.
    """
    if not path.exists():
        return {}
    try:
        return _Work.model_validate_json(path.read_bytes()).tasks
    except (OSError, ValidationError) as error:
        raise OutputError(f"{path}: is damaged; delete it and start again") from error


def _need_lm_eval() -> None:
    try:
        importlib.import_module("lm_eval")
    except ImportError as error:
        raise EvaluationError(f"evaluation needs lm-eval ({error}): pip install 'deltamend[eval]'") from error
