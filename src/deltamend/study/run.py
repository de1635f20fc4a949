"""A whole study: what is there, what is left to do, and doing it, several cells at a time."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

from pydantic import Field

from deltamend.errors import DeltamendError, OutputError, UsageError, option
from deltamend.evaluation.backend import best_device
from deltamend.evaluation.lm_eval_tasks import check_requirements, files_of
from deltamend.machine.children import Processes, fresh_processes
from deltamend.machine.locks import lock_file
from deltamend.recipes.trl_training import check_trl
from deltamend.records import Record
from deltamend.study.activations import activations_of
from deltamend.study.base_model import Workplace, prepare_base, source_folder
from deltamend.study.cell import evaluate_base, run_cell
from deltamend.study.config import ModelEntry, Study, StudyCell, Target
from deltamend.study.own_folders import refuse_links
from deltamend.study.questions import exam_questions, general_questions, given_answers, training_questions
from deltamend.study.record_keys import done_repairs
from deltamend.study.records import FINETUNED, BaseRecord, CellRecord, base_file, cell_file, read_record

CellProgress = Callable[[str, str, float], None]
"""Called with a cell's name, what it is at, and the share of the cell that is done."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Environment variables of a worker: the figures must not depend on how many threads a library would take."""
_POLL = 0.5
"""Seconds between two looks at what the workers say."""
_LEFTOVERS = (".cell-*", "models/.*.part", "cells/.*.part", "bases/.*.part", "exams/**/.*.part")
"""What a run that is killed may leave in the study's folder: nothing reads these, and nothing else is named so."""


class CellState(Record):
    """How much of one cell is done."""

    cell: str
    chooses: bool = Field(description="Whether repairs may be chosen on it.")
    models: int = Field(description="Models to ask: the fine-tuned one and its repairs.")
    done: int = Field(
        description="Of these, in the record as the study makes them; fine-tuning or exam may have changed since."
    )


class StudyState(Record):
    """How much of a study is done."""

    cells: tuple[CellState, ...]
    bases: int
    bases_done: int
    problems: tuple[str, ...] = Field(description="What would make a run fail on this machine.")

    @property
    def left(self) -> int:
        """Models still to be asked."""
        return sum(cell.models - cell.done for cell in self.cells) + self.bases - self.bases_done


def study_state(study: Study, out: Path, data: Path | None) -> StudyState:
    """What is done of a study, what is left, and what would make a run fail; nothing is fetched or written.

    Raises:
        EvaluationError: a record in `out` is damaged.
    """
    cells = []
    for cell in study.planned_cells():
        record = read_record(cell_file(out, cell.name), CellRecord)
        models = 1 + len(list(study.repairs_of(cell)))
        done = 0 if record is None else (FINETUNED in record.models) + len(done_repairs(study, cell, record))
        cells.append(CellState(cell=cell.name, chooses=study.chooses(cell), models=models, done=done))
    bases = list({(cell.model.name, cell.target.name): None for cell in study.planned_cells()})
    device = best_device()
    there = sum(read_record(base_file(out, *one, device), BaseRecord) is not None for one in bases)
    return StudyState(cells=tuple(cells), bases=len(bases), bases_done=there, problems=tuple(_problems(study, data)))


def _problems(study: Study, data: Path | None) -> Iterator[str]:
    folders = () if data is None else (data,)
    local = [
        model
        for model in study.models
        if model.local is not None or Path(model.source).is_dir() or model.source == "demo"
    ]
    checks: list[Callable[[], object]] = [check_trl, *(partial(source_folder, model) for model in local)]
    for target in study.targets:
        if target.train.hub is None:
            checks.append(partial(training_questions, target, data))
        if target.test.hub is None:
            checks.append(partial(exam_questions, target, data))
    checks += [partial(general_questions, one, data) for one in study.exam.sources if one.items.hub is None]
    checks += [partial(given_answers, one, data) for one in study.exam.given_answers if one.items.hub is None]
    of_models = [task for model in study.models for task in (*model.tasks, *model.safety)]
    for task in (*study.exam.tasks, *study.exam.safety, *of_models):
        checks += [partial(check_requirements, task), partial(files_of, task, folders)]
    for check in checks:
        try:
            check()
        except DeltamendError as error:
            yield str(error)


def run_study(
    study: Study,
    out: Path,
    *,
    data: Path | None,
    workers: int | None = None,
    cells: Callable[[str], bool] | None = None,
    minutes: float | None = None,
    progress: CellProgress | None = None,
) -> None:
    """Run what is left of a study; whatever is done is kept, and a later run goes on.

    Each worker is a process that runs one cell at a time on one thread (on the accelerator, where there is one), so the
    figures do not depend on how many there are.

    Args:
        study: what to do.
        out: the study's folder.
        data: folder with the items, where they are local.
        workers: number of cells at a time; None for one for each core, or one where there is an accelerator.
        cells: says of a cell's name whether to run it; None for all.
        minutes: after this many minutes no new cell is begun.
        progress: called as work goes on.

    Raises:
        DeltamendError: a cell failed, and the others were run to their end; or a base failed, and no cell was begun; or a
            worker was killed, and the run ended there. What is done is kept.
        OutputError: `out` cannot be written, or another run is at work in it.
        UsageError: `cells` leaves none.
    """
    runnable = study.cells_to_run()
    if not runnable:
        raise UsageError("the study has no choosing cells, and `confirm: false` holds the others back")
    chosen = [cell for cell in runnable if cells is None or cells(cell.name)]
    if not chosen:
        raise UsageError(f"no cell of that name; there are {', '.join(cell.name for cell in runnable)}")
    place = Workplace(study, out.absolute(), None if data is None else data.absolute())
    pairs = {(cell.model.name, cell.target.name): (cell.model, cell.target) for cell in chosen}
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    with alone_in(place.out):
        _sweep(place.out)
        for model in {cell.model.name: cell.model for cell in chosen}.values():
            base = prepare_base(place, model)
            if any(repair.needs_activations for repair in study.repairs):
                activations_of(place, model, base)
        with fresh_processes(workers or _default_workers(), _ONE_THREAD, _end_with, os.getpid()) as pool:
            work = _RunningWork(pool, progress or (lambda _cell, _what, _share: None), deadline)
            # The first base writes down its own answers, which all exams need.
            asked: set[str] = set()
            for (model_name, target_name), (model, target) in pairs.items():
                work.add(f"{model_name}/{target_name}", _evaluate_base, place, model, target)
                if model_name not in asked:
                    work.finish()
                asked.add(model_name)
            work.finish()
            for cell in chosen:
                work.add(cell.name, _run_cell, place, cell)
            work.finish()


class _RunningWork:
    """Work handed to the pool, and what came of it."""

    def __init__(self, pool: Processes, progress: CellProgress, deadline: float | None) -> None:
        self._pool, self._report, self._deadline = pool, progress, deadline
        self._running: dict[Future[None], str] = {}
        self._heard: set[str] = set()
        self._lost: list[str] = []

    def add(self, name: str, function: Callable[..., None], *arguments: Any) -> None:
        """Queue one piece of work, which is skipped if its turn comes after the deadline."""
        progress = (name, self._pool.messages)
        try:
            self._running[self._pool.executor.submit(_in_time, self._deadline, function, *arguments, progress)] = name
        except BrokenProcessPool:
            self._lost.append(name)

    def finish(self) -> None:
        """Wait for all of it.

        Raises:
            DeltamendError: a piece failed, and the rest went on; or a worker was killed, which ends them all.
        """
        failed: list[str] = []
        while self._running:
            done, _ = wait(self._running, timeout=_POLL, return_when="FIRST_COMPLETED")
            self._pass_on()
            for future in done:
                name = self._running.pop(future)
                try:
                    future.result()
                except BrokenProcessPool:
                    self._lost.append(name)
                except Exception as error:  # torch, the disk and the processes fail in ways of their own
                    reason = " ".join(str(error).split())[:300]
                    failed.append(
                        f"{name}: {reason if isinstance(error, DeltamendError) else f'{type(error).__name__}: {reason}'}"
                    )
        if self._lost:
            under_way = [name for name in self._lost if name in self._heard] or self._lost
            failed.insert(
                0,
                f"{', '.join(under_way)}: a worker was killed meanwhile, as happens when memory runs out; what is done is kept, "
                f"run it again with fewer {option('workers')}",
            )
        if failed:
            others = f"; and {len(failed) - 1} more failed" if len(failed) > 1 else ""
            raise DeltamendError(failed[0] + others)

    def _pass_on(self) -> None:
        while True:
            try:
                name, what, share = self._pool.messages.get_nowait()
            except Empty:
                return
            self._heard.add(name)
            self._report(name, what, share)


def _end_with(parent: int) -> None:
    """End this worker when its parent ends: it would go on writing to a folder that another run has taken."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold the study's folder, which is made where it is not there, for this process.

    Raises:
        OutputError: another run holds it, it cannot be written, or something in it is a link.
    """
    with ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock_file(out / ".lock", wait=False))
        except BlockingIOError as error:
            raise OutputError(
                f"{out}: another run is working in it; wait until it ends, or give another folder"
            ) from error
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({error.strerror}); give another folder") from error
        refuse_links(out)
        yield


def _sweep(out: Path) -> None:
    """Delete what runs that were killed have left half-made.

    Raises:
        OutputError: something cannot be deleted.
    """
    for pattern in _LEFTOVERS:
        for left in list(out.glob(pattern)):
            try:
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            except OSError as error:
                raise OutputError(
                    f"{left}: was left by a run that was cut off, and cannot be deleted ({error.strerror}); delete it"
                ) from error


def _default_workers() -> int:
    return len(os.sched_getaffinity(0)) if best_device() == "cpu" else 1


def _in_time(deadline: float | None, function: Callable[..., None], *arguments: Any) -> None:
    # The clock is the machine's own, the same in all its processes.
    if deadline is None or time.monotonic() < deadline:
        name, messages = arguments[-1]
        messages.put((name, "begins", 0.0))
        function(*arguments)


def _evaluate_base(place: Workplace, model: ModelEntry, target: Target, progress: tuple[str, Any]) -> None:
    name, messages = progress
    evaluate_base(place, model, target, lambda what, share: messages.put((name, what, share)))
    messages.put((name, "done", 1.0))


def _run_cell(place: Workplace, cell: StudyCell, progress: tuple[str, Any]) -> None:
    name, messages = progress
    run_cell(place, cell, lambda what, share: messages.put((name, what, share)))
    messages.put((name, "done", 1.0))
