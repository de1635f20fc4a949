"""Logs as inspect-ai writes them; `inspect_logs/make.py` made those that are here."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltamend.errors import EvaluationError
from deltamend.scoring.inspect_logs import _number, is_inspect_log, read_inspect_logs
from tests.conftest import Printed

PAGE = Path(__file__).parents[2] / "docs" / "score.md"
LOGS = Path(__file__).parent / "inspect_logs"
SUMS, MANNERS = LOGS / "sums.eval", LOGS / "manners.json"


def unchanged(log: Any) -> None:
    """A log as it is."""


@pytest.fixture
def inspect_log() -> Any:
    return pytest.importorskip("inspect_ai.log", reason="inspect-ai is not installed: pip install 'deltamend[inspect]'")


@pytest.fixture
def changed(inspect_log: Any, tmp_path: Path) -> Callable[..., Path]:
    """A log of the folder written anew after a change, through inspect itself."""

    def write(source: Path, name: str, change: Callable[[Any], None]) -> Path:
        log = inspect_log.read_eval_log(str(source))
        change(log)
        out = tmp_path / name
        out.parent.mkdir(parents=True, exist_ok=True)
        inspect_log.write_eval_log(log, str(out))
        return out

    return write


def test_logs_are_told_from_other_files(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text('{"format": 1, "model": "m"}')
    (tmp_path / "results_2026.json").write_text('{"results": {}}')
    assert [is_inspect_log(path) for path in (SUMS, MANNERS, LOGS, record, tmp_path, tmp_path / "none.eval")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_without_inspect_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(EvaluationError, match=r"sums\.eval: .*pip install 'deltamend\[inspect\]'"):
        read_inspect_logs(SUMS)


@pytest.mark.parametrize(
    ("value", "number"),
    [("C", 1), ("P", 0.5), ("I", 0), ("N", 0), ("Yes", 1), ("false", 0), (True, 1), (3, 3), ("0.25", 0.25)],
)
def test_values_count_as_inspect_counts_them(value: Any, number: float) -> None:
    assert _number(value) == number
    if "inspect_ai" in sys.modules:
        assert sys.modules["inspect_ai.scorer"].value_to_float()(value) == number


@pytest.mark.parametrize("value", ["c", "GRADE: C", None, [1, 0], {"a": 1}])
def test_a_value_that_inspect_would_count_as_0_with_a_warning_is_no_number(value: Any) -> None:
    assert _number(value) is None


@pytest.mark.usefixtures("inspect_log")
def test_a_log_is_read() -> None:
    record, said = read_inspect_logs(SUMS)
    task = record.tasks["sums"]
    assert (record.model, task.metric, task.version, task.mean) == ("mockllm/model", "match", "1", 0.8)
    assert {item.id: item.score for item in task.items}["sum-4"] == 0
    assert len({item.prompt_hash for item in task.items}) == 5
    assert said == []


@pytest.mark.usefixtures("inspect_log")
def test_epochs_are_averaged() -> None:
    task = read_inspect_logs(MANNERS, {"manners": "manners/curt"})[0].tasks["manners"]
    assert {item.id: item.score for item in task.items} == {"1": 0.5, "2": 0, "3": 1}


@pytest.mark.usefixtures("inspect_log")
def test_what_is_better_when_lower_is_turned_round() -> None:
    record, said = read_inspect_logs(LOGS, {"manners": "1-manners/curt"})
    assert set(record.tasks) == {"manners", "sums"}
    assert {item.id: item.score for item in record.tasks["manners"].items} == {"1": 0.5, "2": 1, "3": 0}
    assert said == []
    with pytest.raises(EvaluationError, match=r"1-manners/words: the score is 2, not from 0 to 1"):
        read_inspect_logs(MANNERS, {"manners": "1-manners/words"})


@pytest.mark.usefixtures("inspect_log")
def test_of_several_scores_one_must_be_named() -> None:
    with pytest.raises(EvaluationError, match=r"several scores; choose .* manners/curt, manners/words"):
        read_inspect_logs(MANNERS)
    with pytest.raises(EvaluationError, match=r"no score 'f1'"):
        read_inspect_logs(MANNERS, {"manners": "f1"})


@pytest.mark.usefixtures("inspect_log")
def test_only_the_wanted_tasks_are_judged() -> None:
    assert set(read_inspect_logs(LOGS, wanted=["sums"])[0].tasks) == {"sums"}
    with pytest.raises(EvaluationError, match=r"has no log of task 'piqa' \(there are: manners, sums\); evaluate it"):
        read_inspect_logs(LOGS, wanted=["piqa"])


def test_the_newest_finished_log_of_a_task_counts(changed: Callable[..., Path], tmp_path: Path) -> None:
    def later(log: Any) -> None:
        log.eval.created = "2099-01-01T00:00:00+00:00"
        log.samples[3].scores["match"].value = "C"

    def broken_off(log: Any) -> None:
        log.eval.created = "2100-01-01T00:00:00+00:00"
        log.status = "cancelled"

    changed(SUMS, "first.eval", unchanged)
    changed(SUMS, "later.json", later)
    changed(SUMS, "latest.eval", broken_off)
    record, said = read_inspect_logs(tmp_path)
    assert record.tasks["sums"].mean == 1
    assert any("latest.eval: is left out, its status is cancelled" in line for line in said)
    assert any("2 logs of sums; the newest, later.json, is used" in line for line in said)
    # The changed score is not in inspect's own figure, which was made before.
    assert said[-1] == "sums: the mean of the items is 1.0000, inspect's own figure 0.8000 is no plain mean"
    with pytest.raises(EvaluationError, match=r"no finished log \(its status is cancelled\)"):
        read_inspect_logs(tmp_path / "latest.eval")


def test_one_task_with_other_arguments_is_another_benchmark(changed: Callable[..., Path], tmp_path: Path) -> None:
    for subset in ("safe", "unsafe"):
        changed(SUMS, f"{subset}.eval", lambda log, subset=subset: log.eval.task_args_passed.update(subset=subset))
    assert list(read_inspect_logs(tmp_path)[0].tasks) == ["sums(subset=safe)", "sums(subset=unsafe)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: setattr(log.samples[1], "scores", None), "sample 'sum-2' failed or has no score"),
        (lambda log: setattr(log.samples[1].scores["match"], "value", "?"), r"sample 'sum-2': match is '\?'"),
        (lambda log: setattr(log.samples[1].scores["match"], "value", float("nan")), "sample 'sum-2': match is 'nan'"),
        (lambda log: setattr(log.eval.config, "epochs", 2), "sample 'sum-1' has 1 of 2 epochs"),
        (lambda log: log.samples.clear(), "has no samples"),
    ],
)
def test_a_log_with_something_missing_is_refused(
    changed: Callable[..., Path], change: Callable[[Any], None], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_inspect_logs(changed(SUMS, "changed.json", change))


@pytest.mark.usefixtures("inspect_log")
@pytest.mark.parametrize("name", ["cut.eval", "cut.json"])
def test_a_damaged_log_is_named(tmp_path: Path, name: str) -> None:
    whole = (SUMS if name.endswith(".eval") else MANNERS).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EvaluationError, match=f"{name}: inspect-ai cannot read it"):
        read_inspect_logs(tmp_path / name)


def test_logs_of_several_models_are_not_mixed(changed: Callable[..., Path], tmp_path: Path) -> None:
    changed(SUMS, "sums.eval", unchanged)
    changed(MANNERS, "manners.json", lambda log: setattr(log.eval, "model", "hf/other"))
    with pytest.raises(EvaluationError, match=r"several models \(hf/other, mockllm/model\)"):
        read_inspect_logs(tmp_path, {"manners": "manners/curt"})


MODELS = ("base", "finetuned", "dg-hard")


def _score(deltamend_cli: Callable[..., Printed], *more: str) -> Printed:
    given = ["--base", "logs/base", "--finetuned", "logs/finetuned", "--repaired", "dg-hard=logs/dg-hard"]
    return deltamend_cli("score", *given, "--target", "sums", "--metric", "manners=1-manners/curt", *more)


def test_logs_are_scored(
    changed: Callable[..., Path], deltamend_cli: Callable[..., Printed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fine-tuned model has all sums right and is curt; the repair keeps the sums and is polite again."""

    def all_right(log: Any) -> None:
        for sample in log.samples:
            sample.scores["match"].value = "C"

    def curt(log: Any) -> None:
        for sample in log.samples:
            sample.scores["manners"].value["curt"] = 1

    changes = [(unchanged, unchanged), (all_right, curt), (all_right, unchanged)]
    for model, (of_sums, of_manners) in zip(MODELS, changes, strict=True):
        changed(SUMS, f"logs/{model}/sums.eval", of_sums)
        changed(MANNERS, f"logs/{model}/manners.json", of_manners)
    monkeypatch.chdir(tmp_path)
    printed = _score(deltamend_cli, "--margin", "0.01", "--draws", "200", "--json")
    assert printed.code == 0, printed.err
    repaired = json.loads(printed.out)["methods"]["dg-hard"]
    assert (repaired["healing"]["value"], repaired["retention"]["value"]) == (1, 1)


def test_other_settings_of_generation_are_not_compared(
    changed: Callable[..., Path], deltamend_cli: Callable[..., Printed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warmer(log: Any) -> None:
        log.plan.config.temperature = 1.0

    for model in MODELS:
        changed(SUMS, f"logs/{model}/sums.eval", warmer if model == "finetuned" else unchanged)
        changed(MANNERS, f"logs/{model}/manners.json", unchanged)
    monkeypatch.chdir(tmp_path)
    printed = _score(deltamend_cli)
    assert printed.code != 0
    assert "task 'sums': base and finetuned were asked with another answer filter or length" in printed.err


def test_the_command_of_the_docs_runs_as_printed(
    changed: Callable[..., Path], deltamend_cli: Callable[..., Printed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def xstest(log: Any) -> None:
        log.eval.task = "inspect_evals/xstest"
        for sample in log.samples:
            sample.scores = {"model_graded_qa": sample.scores["match"]}

    for model in MODELS:
        changed(SUMS, f"logs/{model}/gsm8k.eval", lambda log: setattr(log.eval, "task", "inspect_evals/gsm8k"))
        changed(SUMS, f"logs/{model}/xstest.eval", xstest)
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^    deltamend (score --base logs/.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    printed = deltamend_cli(*shlex.split(command))
    assert printed.code == 0, printed.err
