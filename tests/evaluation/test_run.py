from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltamend.errors import EvaluationError, OutputError, UsageError
from deltamend.evaluation.backend import BackendOptions
from deltamend.evaluation.one_benchmark import AskOptions
from deltamend.evaluation.record import Evaluation, read_evaluation
from deltamend.evaluation.run import EvaluationRun, evaluate, run_benchmarks
from deltamend.evaluation.suite import Suite, SuiteTask, suite_of_tasks
from deltamend.machine.processor import computes_in_bf16
from tests.evaluation.conftest import ARC, write_items
from tests.evaluation.tiny_suite import ARC_EASY, MMLU, SAFE, UNSAFE, loaded_model, log_likelihood, suite_of


def test_the_record_says_what_its_figures_depend_on(whole: Evaluation, tiny_model: Path) -> None:
    assert whole.model == str(tiny_model)
    assert whole.model_hash is not None
    assert whole.template_hash is not None
    assert whole.versions["lm_eval"]
    assert whole.settings == {
        "backend": "hf",
        "device": "cpu",
        "dtype": "auto" if computes_in_bf16() else "float32",
        "judge": "refusal-strings",
    }
    arc, mmlu = whole.tasks["arc"], whole.tasks["mmlu"]
    assert (arc.metric, arc.version, arc.fewshot) == ("acc", "1.0", 0)
    assert arc.chance == pytest.approx(1 / 3)
    assert (mmlu.fewshot, mmlu.chance) == (1, 0.25)
    assert mmlu.items[0].id == "mmlu_anatomy/anatomy/0"
    assert len({item.prompt_hash for item in mmlu.items}) == len(mmlu.items)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped(
    run: Callable[..., EvaluationRun], whole: Evaluation, tmp_path: Path
) -> None:
    def interrupt(name: str, _share: float) -> None:
        if name == "safe":
            raise KeyboardInterrupt

    tasks = (ARC_EASY, MMLU, SAFE, UNSAFE)
    with pytest.raises(KeyboardInterrupt):
        run(*tasks, progress=interrupt)
    assert not (tmp_path / "out.json").exists()
    asked: list[str] = []
    resumed = run(*tasks, resume=True, progress=lambda name, _share: asked.append(name))
    assert resumed.kept == ("arc", "mmlu")
    assert "arc" not in asked
    assert resumed.evaluation == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["limit", "seed", "dtype", "items", "model"])
def test_what_was_finished_under_other_conditions_is_asked_again(tiny_model: Path, tmp_path: Path, change: str) -> None:
    path = write_items(tmp_path / "mine.jsonl", ARC[:2])
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)

    def go(*, stop: bool, **changed: Any) -> EvaluationRun:
        def progress(name: str, _share: float) -> None:
            if stop and name == "other":
                raise KeyboardInterrupt

        other = write_items(tmp_path / "other.jsonl", ARC[2:4])
        return run_benchmarks(
            str(model),
            [suite_of_tasks([str(path), str(other)])],
            tmp_path / "out.json",
            backend=BackendOptions(device="cpu", dtype=changed.get("dtype", "auto")),
            asking=AskOptions(limit=changed.get("limit"), seed=changed.get("seed", 0)),
            resume=not stop,
            progress=progress,
        )

    with pytest.raises(KeyboardInterrupt):
        go(stop=True)
    if change == "items":
        write_items(path, ARC[1:3])
    if change == "model":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    others: dict[str, dict[str, Any]] = {"limit": {"limit": 1}, "seed": {"seed": 1}, "dtype": {"dtype": "bfloat16"}}
    changed = others.get(change, {})
    assert go(stop=False, **changed).kept == ()


def test_a_record_that_is_there_is_not_replaced_unless_asked(run: Callable[..., EvaluationRun], tmp_path: Path) -> None:
    run(ARC_EASY)
    before = (tmp_path / "out.json").read_bytes()
    with pytest.raises(OutputError, match="already exists; give another name, or overwrite=True"):
        run(ARC_EASY)
    assert not run(ARC_EASY, resume=True).written
    with pytest.raises(OutputError, match="already exists, from a different run"):
        run(ARC_EASY, resume=True, asking=AskOptions(limit=2))
    assert (tmp_path / "out.json").read_bytes() == before
    assert run(ARC_EASY, overwrite=True, asking=AskOptions(limit=2)).evaluation.limit == 2


@pytest.mark.slow
def test_a_users_own_files_of_all_three_kinds_are_asked(tiny_model: Path, tmp_path: Path) -> None:
    choice = write_items(tmp_path / "choice.jsonl", ARC[:3])
    exact = write_items(
        tmp_path / "exact.jsonl", [{"question": "Say b.", "answer": "b"}, {"question": "?", "answer": ""}]
    )
    text = write_items(tmp_path / "text.jsonl", [{"text": "hello world"}, {"text": "é" * 40}])
    suites = [suite_of_tasks([str(path) for path in (choice, exact, text)])]
    tasks = run_benchmarks(
        str(tiny_model), suites, tmp_path / "out.json", backend=BackendOptions(device="cpu")
    ).evaluation.tasks
    assert [tasks[name].metric for name in tasks] == ["acc_norm", "exact_match", "log2_prob_per_byte"]
    model, tokenizer = loaded_model(tiny_model)
    # lm-eval rolls over a text from the beginning-of-text token on, and so predicts every byte of it.
    expected = log_likelihood(model, tokenizer, tokenizer.bos_token, "hello world")
    assert list(tasks["text"].items[0].loglikelihoods) == pytest.approx([expected], abs=1e-4)
    assert tasks["text"].items[0].score == pytest.approx(expected / 11 / math.log(2), abs=1e-5)
    assert tasks["text"].chance is None


def test_the_likelihood_of_an_answer_is_asked_without_generating_it(tiny_model: Path, tmp_path: Path) -> None:
    items = write_items(tmp_path / "items.jsonl", [{"question": "a b", "answers": ["c d", "e"]}] * 1)
    task = SuiteTask(name="likely", file=str(items), metric="prob_per_byte")
    suite = Suite(name="own", version="1", tasks=(task,))
    found = run_benchmarks(str(tiny_model), [suite], tmp_path / "out.json", backend=BackendOptions(device="cpu"))
    model, tokenizer = loaded_model(tiny_model)
    expected = log_likelihood(model, tokenizer, "a b", "c d")
    (item,) = found.evaluation.tasks["likely"].items
    assert item.score == pytest.approx(math.exp(expected / 3), abs=1e-5)
    assert list(item.loglikelihoods) == pytest.approx([expected], abs=1e-4)


def test_a_model_without_a_template_is_asked_plainly(
    tiny_model: Path, tmp_path: Path, run: Callable[..., EvaluationRun]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    (bare / "chat_template.jinja").unlink()
    made = run(SAFE, ARC_EASY, model=bare)
    assert (made.evaluation.template_hash, made.without_template) == (None, ("safe",))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (ARC_EASY.model_copy(update={"metric": "bleu"}), "arc: no metric 'bleu'; the task has acc, acc_norm"),
        (ARC_EASY.model_copy(update={"filter": "strict"}), "arc: no answer filter 'strict'; the task has none"),
        (ARC_EASY.model_copy(update={"file": "gone.jsonl"}), "gone.jsonl: no such file"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(
    run: Callable[..., EvaluationRun], task: SuiteTask, message: str
) -> None:
    with pytest.raises(EvaluationError) as caught:
        run(task)
    assert message in str(caught.value)


def test_models_and_backends_that_are_not_there_are_named(run: Callable[..., EvaluationRun], tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"gone: no such folder"):
        run(ARC_EASY, model=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="no weight files"):
        run(ARC_EASY, model=tmp_path / "empty")
    with pytest.raises(UsageError, match="backend: lm-eval cannot open 'nonsense'"):
        run(ARC_EASY, backend=BackendOptions(name="nonsense"))
    with pytest.raises(UsageError, match="limit: 0 items are none to ask; give 1 or more"):
        AskOptions(limit=0)


def test_a_secret_given_to_a_backend_is_not_written_down(run: Callable[..., EvaluationRun], tmp_path: Path) -> None:
    run(ARC_EASY, backend=BackendOptions(device="cpu", arguments={"token": "hf_secret", "max_length": 256}))
    text = (tmp_path / "out.json").read_text()
    assert "hf_secret" not in text
    assert json.loads(text)["settings"]["backend.max_length"] == "256"


def test_python_gets_the_record_that_is_written_and_nothing_is_written_without_a_name(
    tiny_model: Path, items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = suite_of(items, ARC_EASY, SAFE)[0]
    options: dict[str, Any] = {"suite": suite, "skip": ["safe"], "limit": 4, "device": "cpu"}
    found = evaluate(tiny_model, **options)
    assert list(tmp_path.iterdir()) == []
    assert [len(scores.items) for scores in found.tasks.values()] == [4]
    assert found == evaluate(str(tiny_model), **options, out="out.json.gz") == read_evaluation(tmp_path / "out.json.gz")
    with pytest.raises(UsageError, match=r"^resume=True: there is nothing to continue without out"):
        evaluate(tiny_model, **options, resume=True)


def test_something_must_be_asked_and_options_are_checked_before_anything_runs(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=r"^nothing to ask; give suite or task$"):
        evaluate(tiny_model)
    with pytest.raises(UsageError, match="judge: there is no judge 'gpt'"):
        evaluate(tiny_model, suite="quick", judge="gpt")
    with pytest.raises(UsageError, match="dtype: no dtype 'int3'; there are auto"):
        evaluate(tiny_model, suite="quick", dtype="int3")
