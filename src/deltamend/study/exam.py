"""What every model of a study is asked: its target, what the base knew how to do, and the benchmarks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from deltamend.checkpoint.hashing import hash_file, hash_folder
from deltamend.errors import EvaluationError
from deltamend.evaluation.backend import BackendOptions
from deltamend.evaluation.judges import judge_named
from deltamend.evaluation.lm_eval_tasks import files_of
from deltamend.evaluation.one_benchmark import AskOptions
from deltamend.evaluation.record import Evaluation, TaskScores
from deltamend.evaluation.run import RESPONSES, run_benchmarks
from deltamend.evaluation.suite import Suite, SuiteTask
from deltamend.machine.atomic import write_whole
from deltamend.machine.bounded_files import UnreadableError, read_bytes
from deltamend.machine.digests import json_sha256
from deltamend.machine.json_text import JsonError, check_size
from deltamend.records import Record, first_problem
from deltamend.study.config import Target
from deltamend.study.exam_config import Exam, GeneralPrompts
from deltamend.study.questions import Question, exam_questions, general_questions, given_answers, misplaced
from deltamend.study.records import MISPLACED, TARGET, TARGET_LIKELIHOOD

_ASKED = 2
"""Raised whenever the same questions are asked or scored in another way than before."""
_KEPT, _LONGEST_ANSWER = 2, 200
"""Answers of a benchmark that are kept as examples, and their characters."""
_NEVER = "(?!)"
"""Matches nothing."""
_LARGEST = 500_000_000
"""Bytes that the file of a base's own answers may have."""


class _OwnAnswers(Record):
    asked: str
    answers: dict[str, str]


@dataclass(frozen=True)
class PreparedExam:
    """An exam whose questions are written down, ready to be asked of any model.

    Attributes:
        suite: what every model is asked.
        form: what only fine-tuned models are asked, in addition: what the form of the target's answers alone is worth.
        safety: what only some models are asked, in addition.
        digest: hash of all questions and of how they are asked.
    """

    suite: Suite
    form: Suite
    safety: Suite | None
    digest: str


def prepare_exam(name: str, exam: Exam, target: Target, base: Path, data: Path | None, folder: Path) -> PreparedExam:
    """Write the questions to `folder`; the base is asked for its own answers where they are not there yet.

    Args:
        name: of the study.
        exam: what the models of this base are asked.
        target: what they learn.
        base: folder of the base model.
        data: folder with the items, where they are local.
        folder: to write to; the base's own answers go to the folder above it, as all targets share them.

    Raises:
        DeltamendError: items cannot be read, or the base cannot be asked.
    """
    tested = exam_questions(target, data)
    right = [{"id": one.id, "question": one.question, "answers": [one.gold]} for one in tested]
    learnt = [{"id": one.id, "question": one.question, "answers": [one.answer]} for one in tested]
    tasks = [
        _task(folder, TARGET, right, metric="exact_match", max_tokens=target.max_tokens),
        _task(folder, TARGET_LIKELIHOOD, learnt, metric="prob_per_byte"),
    ]
    forms = []
    for source in exam.sources:
        general = general_questions(source, data)
        answers = own_answers(base, general, exam, source, folder.parent / f"{source.own_answers}.json")
        own = [
            {"id": one.id, "question": one.question, "answers": [answers[one.id]]} for one in general if answers[one.id]
        ]
        if not own:
            raise EvaluationError(
                f"{base.name}: answers every general prompt with nothing; check its chat template, or give other prompts"
            )
        tasks.append(_task(folder, source.own_answers, own, metric="prob_per_byte"))
        if source.form:
            watched = [
                {"id": one.id, "question": one.question, "out_of_place": target.form or _NEVER} for one in general
            ]
            forms.append(_task(folder, source.keeps_form, watched, metric="keeps_form", max_tokens=source.max_tokens))
    tasks += forms
    for given in exam.given_answers:
        known = [
            {"id": one.id, "question": one.question, "answers": [one.answer if given.chat else f" {one.answer}"]}
            for one in given_answers(given, data)
        ]
        tasks.append(_task(folder, given.name, known, metric="prob_per_byte", chat=given.chat))
    tasks += exam.tasks
    folders = () if data is None else (data,)
    digest = _digest(exam, (*tasks, *exam.safety), folders)
    suite = Suite(name=name, version=digest[:8], tasks=tuple(tasks), folders=folders)
    safety = None
    if exam.safety:
        safety = Suite(name=f"{name}-safety", version=digest[:8], tasks=exam.safety, folders=folders)
    unasked = [{"id": one.id, "question": one.question, "answers": [one.answer]} for one in misplaced(tested)]
    form = Suite(
        name=f"{name}-form", version=digest[:8], tasks=(_task(folder, MISPLACED, unasked, metric="prob_per_byte"),)
    )
    return PreparedExam(suite, form, safety, digest)


def evaluate_on_exam(
    model: Path, prepared: PreparedExam, exam: Exam, *, safety: bool, form: bool = False
) -> Evaluation:
    """Ask one model the questions; the safety tasks only with `safety`, and what the form is worth only with `form`.

    Raises:
        EvaluationError: the model cannot be loaded or asked.
    """
    suites = [prepared.suite]
    suites += [prepared.form] if form else []
    suites += [prepared.safety] if safety and prepared.safety is not None else []
    asking = replace(_asking(exam), keep_responses=True)
    found = run_benchmarks(str(model), suites, backend=_backend(exam), asking=asking).evaluation
    shown = (TARGET, *(source.keeps_form for source in exam.sources if source.form))
    tasks = {name: _with_few_answers(task, _KEPT if name in shown else 0) for name, task in found.tasks.items()}
    settings = {name: value for name, value in found.settings.items() if name != RESPONSES}
    return found.model_copy(update={"model": model.name, "tasks": tasks, "settings": settings})


def _with_few_answers(task: TaskScores, kept: int) -> TaskScores:
    """The answers to the first items alone, as examples on the page; none to prompts that may be harmful."""
    items = [
        item.model_copy(
            update={"response": item.response[:_LONGEST_ANSWER] if item.response is not None and place < kept else None}
        )
        for place, item in enumerate(task.items)
    ]
    return task.model_copy(update={"items": tuple(items)})


def own_answers(
    base: Path, general: list[Question], exam: Exam, source: GeneralPrompts, kept: Path
) -> Mapping[str, str]:
    """What the base says to each prompt, by its id; kept in a file, as later fine-tuned models are watched for it.

    Raises:
        EvaluationError: the base cannot be asked, or the file is damaged.
    """
    decides = [hash_folder(base), [list(one) for one in general], source.model_dump(mode="json"), exam.dtype]
    wanted = json_sha256(decides)
    found = _kept_answers(kept)
    if found is not None and found.asked == wanted:
        return found.answers
    kept.parent.mkdir(parents=True, exist_ok=True)
    items = [{"id": one.id, "question": one.question, "out_of_place": _NEVER} for one in general]
    task = _task(kept.parent, "general", items, metric="keeps_form", max_tokens=source.max_tokens)
    asked = run_benchmarks(
        str(base),
        [Suite(name="general", version="1", tasks=(task,))],
        kept.parent / "general.json",
        backend=_backend(exam),
        asking=AskOptions(keep_responses=True),
        overwrite=True,
    )
    answers = {item.id: (item.response or "").strip() for item in asked.evaluation.tasks["general"].items}
    write_whole(kept, _OwnAnswers(asked=wanted, answers=answers).model_dump_json(indent=1))
    return answers


def _kept_answers(kept: Path) -> _OwnAnswers | None:
    """What the file holds; None where there is none.

    Raises:
        EvaluationError: it is damaged.
    """
    if not os.path.lexists(kept):
        return None
    try:
        content = read_bytes(kept, _LARGEST)
        check_size(content)
        return _OwnAnswers.model_validate_json(content)
    except (UnreadableError, JsonError, ValidationError) as error:
        # The whole content would stand in what pydantic says by itself.
        said = ": ".join(filter(None, first_problem(error))) if isinstance(error, ValidationError) else str(error)
        reason = " ".join(said.split())[:200]
        raise EvaluationError(f"{kept}: is damaged ({reason}); delete it and run the study again") from error


def _backend(exam: Exam) -> BackendOptions:
    return BackendOptions(dtype=exam.dtype, batch_size=exam.batch_size)


def _asking(exam: Exam) -> AskOptions:
    return AskOptions(judge=judge_named(exam.judge))


def _task(
    folder: Path,
    name: str,
    items: Iterable[Mapping[str, object]],
    *,
    metric: str,
    max_tokens: int | None = None,
    chat: bool = True,
) -> SuiteTask:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    write_whole(file, "".join(f"{json.dumps(item, ensure_ascii=False)}\n" for item in items))
    return SuiteTask(name=name, file=str(file.absolute()), metric=metric, chat=chat, max_tokens=max_tokens)


def _digest(exam: Exam, tasks: Iterable[SuiteTask], folders: tuple[Path, ...]) -> str:
    """Of the questions by their files' content; where the files lie does not matter."""
    asked = [
        (task.model_dump(exclude={"file", "fewshot_file"}), [hash_file(path, path.name).sha256 for path in files])
        for task, files in ((task, files_of(task, folders)) for task in tasks)
    ]
    return json_sha256([_ASKED, asked, exam.dtype, exam.judge])
