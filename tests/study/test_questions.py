from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltamend.errors import DeltamendError
from deltamend.study.config import Target
from deltamend.study.questions import exam_questions, spread, training_questions
from tests.evaluation.conftest import write_items


def target(**fields: Any) -> Target:
    return Target.model_validate({"name": "t", "test_items": 8, **fields})


def sums() -> Target:
    return target(train={"sums": [0, 9]}, test={"sums": [0, 9]}, question="{{a}}+{{b}}?", answer="{{sum}}")


def test_no_sum_is_both_learnt_and_asked() -> None:
    learnt, asked = training_questions(sums(), None), exam_questions(sums(), None)
    assert not {one.question for one in learnt} & {one.question for one in asked}
    assert len(learnt) == 90
    assert len(asked) == 8
    assert all(eval(one.question[:-1]) == int(one.gold) for one in (*learnt, *asked))  # noqa: S307 - sums of ours


def test_items_are_dressed_and_long_ones_left_out(tmp_path: Path) -> None:
    write_items(tmp_path / "a.jsonl", [{"q": "short", "r": 1}, {"q": "much too long", "r": 2}])
    write_items(tmp_path / "b.jsonl", [{"q": "brief", "r": 3}])
    wanted = target(
        train={"files": ["a.jsonl", "b.jsonl"], "longest": 9},
        test={"files": ["b.jsonl"]},
        question="<{{q}}>",
        answer="{{r}}",
        gold="{{r + 1}}",
    )
    found = training_questions(wanted, tmp_path)
    assert [tuple(one) for one in found] == [("a/1", "<short>", "1", "2"), ("b/1", "<brief>", "3", "4")]


@pytest.mark.parametrize(
    ("question", "message"),
    [("{{gone}}", "targets.t.question: item a/1: 'gone' is undefined"), ("{{", "targets.t.question: ")],
)
def test_a_wording_that_does_not_fit_is_named(tmp_path: Path, question: str, message: str) -> None:
    write_items(tmp_path / "a.jsonl", [{"q": "?", "answer": "x"}])
    wanted = target(train={"files": ["a.jsonl"]}, test={"files": ["a.jsonl"]}, question=question)
    with pytest.raises(DeltamendError, match=message.replace(".", r"\.")):
        training_questions(wanted, tmp_path)


def test_files_need_a_folder() -> None:
    wanted = target(train={"files": ["a.jsonl"]}, test={"files": ["a.jsonl"]})
    with pytest.raises(DeltamendError, match=r"reads a\.jsonl; name their folder with data"):
        training_questions(wanted, None)


def test_items_are_spread_evenly() -> None:
    learnt = training_questions(sums(), None)
    assert spread(learnt, 200) == learnt
    assert spread(learnt, 3) == [learnt[0], learnt[30], learnt[60]]
