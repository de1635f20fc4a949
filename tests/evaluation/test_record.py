from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from pydantic import ValidationError

from deltamend.errors import EvaluationError, OutputError
from deltamend.evaluation.record import Evaluation, ItemScore, TaskScores, read_evaluation, write_evaluation


def _evaluation() -> Evaluation:
    items = tuple(
        ItemScore(id=str(i), prompt_hash="0" * 64, score=i % 2, loglikelihoods=(-1.0, -2.5)) for i in range(4)
    )
    task = TaskScores(metric="acc", version="1", fewshot=0, chance=0.25, items=items)
    return Evaluation(model="m", suite="s", suite_version="1", seed=0, tasks={"arc": task})


@pytest.mark.parametrize("name", ["e.json", "e.json.gz"])
def test_a_record_comes_back_as_it_was_written_and_the_same_bytes_each_time(tmp_path: Path, name: str) -> None:
    write_evaluation(_evaluation(), tmp_path / name)
    first = (tmp_path / name).read_bytes()
    write_evaluation(_evaluation(), tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    assert read_evaluation(tmp_path / name) == _evaluation()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_mean_is_over_items() -> None:
    assert _evaluation().tasks["arc"].mean == 0.5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{}", "is missing"),
        (b'{"model": "m"', "Invalid JSON"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-12], "breaks off"),
        (b"\x1f\x8bnot gzip", "damaged"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(EvaluationError, match=says) as caught:
        read_evaluation(tmp_path / "bad")
    assert "\n" not in str(caught.value)


def test_an_item_may_not_be_there_twice() -> None:
    item = ItemScore(id="1", prompt_hash="", score=0)
    with pytest.raises(ValidationError, match="twice"):
        TaskScores(metric="acc", version="1", fewshot=0, items=(item, item))


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_evaluation(_evaluation(), tmp_path / "absent" / "e.json")
