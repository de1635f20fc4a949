from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deltamend.cli import tune_command
from tests.choosing.test_search import evaluator
from tests.conftest import Pair, Printed

Cli = Callable[..., Printed]


@pytest.fixture
def arguments(float_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A whole command, with the evaluation that reads scores off the weights."""
    monkeypatch.setattr(tune_command, "_evaluator", lambda *_, **__: evaluator(float_pair))
    suite = tmp_path / "suite.yaml"
    suite.write_text("{name: s, version: '1', tasks: [{name: arc, task: arc_easy}, {name: sums, file: sums.jsonl}]}")
    return ["tune", float_pair.base, float_pair.finetuned, "--target", "sums", "--suite", suite, "--work", tmp_path]


@pytest.mark.slow
def test_candidates_the_report_and_the_command_are_printed(
    arguments: list[object], tmp_path: Path, deltamend_cli: Cli
) -> None:
    page = tmp_path / "page.html"
    printed = deltamend_cli(*arguments, "--methods", "task-arithmetic", "--strengths", "1,0.5,0.3,0.2", "--html", page)
    assert printed.code == 0, printed.err
    for text in (
        "Candidates, scored on the half of the items that chooses",
        "reporting half",
        "chosen: task-arithmetic × 0.5",
        "--method task-arithmetic --set weight=0.5",
    ):
        assert text in printed.out
    assert "not tried, because the score had already fallen: task-arithmetic × 0.2" in printed.out
    assert "reporting half" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_json_has_trials_and_both_halves(arguments: list[object], deltamend_cli: Cli) -> None:
    found = json.loads(
        deltamend_cli(*arguments, "--methods", "task-arithmetic", "--strengths", "0.6,0.5", "--json").out
    )
    assert found["chosen"] == "task-arithmetic × 0.5"
    assert found["chosen"] in found["reporting"]["methods"]
    assert [trial["strength"] for trial in found["trials"]] == [0.6, 0.5]


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--strengths", "half"], "--strengths 'half': give numbers"), (["--methods", "revert"], "always evaluated")],
)
def test_wrong_usage_exits_2(arguments: list[object], options: list[str], says: str, deltamend_cli: Cli) -> None:
    printed = deltamend_cli(*arguments, *options)
    assert printed.code == 2
    assert says in printed.err


def test_a_target_that_is_not_evaluated_is_refused_before_anything_is_opened(
    tmp_path: Path, deltamend_cli: Cli
) -> None:
    (tmp_path / "sums.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}')
    for options, says in (
        (["--suite", "quick"], "--target 'sums': is not one of the tasks; they are arc_easy, arc_challenge"),
        (["--task", tmp_path / "sums.jsonl"], "--target 'sums': is the only task"),
    ):
        printed = deltamend_cli("tune", "no-base", "no-finetuned", "--target", "sums", *options)
        assert printed.code == 2
        assert says in printed.err
        assert printed.err.count("\n") == 1


def test_something_must_be_evaluated(deltamend_cli: Cli) -> None:
    printed = deltamend_cli("tune", "base", "finetuned", "--target", "sums")
    assert (printed.code, printed.err) == (2, "deltamend: there is nothing to evaluate; give --suite or --task\n")
