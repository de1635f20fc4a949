from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from deltamend.errors import EvaluationError
from deltamend.evaluation.jsonl_tasks import task_over_jsonl
from tests.evaluation.conftest import write_items


def config(folder: Path, *items: dict[str, Any], prompt: str | None = None) -> dict[str, Any]:
    return task_over_jsonl("mine", write_items(folder / "mine.jsonl", items), prompt=prompt)


def test_a_question_with_choices_is_multiple_choice(tmp_path: Path) -> None:
    item = {"question": "Which?", "choices": ["a", "b"], "gold": 1}
    made = config(tmp_path, item)
    assert made["output_type"] == "multiple_choice"
    assert made["doc_to_text"](item) == "Question: Which?\nAnswer:"


def test_a_question_with_an_answer_is_asked_as_it_stands_and_any_answer_counts(tmp_path: Path) -> None:
    made = config(tmp_path, {"question": "2+2?", "answer": 4}, {"question": "1+1?", "answers": ["2", "two"]})
    docs = list(made["custom_dataset"]()["test"])
    assert made["output_type"] == "generate_until"
    assert [made["doc_to_text"](doc) for doc in docs] == ["2+2?", "1+1?"]
    assert [made["doc_to_target"](doc) for doc in docs] == [["4"], ["2", "two"]]


def test_the_score_of_a_text_is_bits_a_byte_below_zero(tmp_path: Path) -> None:
    made = config(tmp_path, {"text": "é"})
    assert made["output_type"] == "loglikelihood_rolling"
    assert made["process_results"]({"text": "é"}, [-4 * math.log(2)]) == {
        "log2_prob_per_byte": pytest.approx(-2.0),
        "prob_per_byte": pytest.approx(0.25),
    }


@pytest.mark.parametrize(
    ("reply", "kept"),
    [("The capital is Paris.", 1.0), ("42", 0.0), ("SELECT name FROM table", 0.0), ("SELECT is a word of SQL.\n", 1.0)],
)
def test_a_reply_keeps_its_form_if_it_is_in_words_and_not_of_the_form_that_is_out_of_place(
    tmp_path: Path, reply: str, kept: float
) -> None:
    item = {"question": "What?", "out_of_place": r"SELECT \w+ FROM.*"}
    made = config(tmp_path, item)
    assert made["output_type"] == "generate_until"
    assert made["process_results"](item, [reply]) == {"keeps_form": kept}


def test_the_users_prompt_stands_around_the_fields_and_cannot_reach_out_of_them(tmp_path: Path) -> None:
    item = {"question": "{{ 7 * 7 }}", "choices": ["a", "b"], "gold": 1}
    assert config(tmp_path, item, prompt="Q {{question}} A")["doc_to_text"](item) == "Q {{ 7 * 7 }} A"
    with pytest.raises(EvaluationError, match="prompt: "):
        config(tmp_path, item, prompt="{{ ''.__class__.__mro__ }}{{ gone }}")["doc_to_text"](item)
    with pytest.raises(EvaluationError, match="prompt: "):
        config(tmp_path, item, prompt="{{ question")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"question": "?", "choices": ["a", "b"], "gold": 2}], "item 1: gold is 2, and there are only 2 choices"),
        ([{"question": "?", "choices": ["a", ""], "gold": 0}], "item 1: a choice is empty"),
        ([{"question": "?", "choices": ["a"], "gold": 0}], "item 1: choices: "),
        ([{"question": 3, "answer": "x"}], "item 1: question: "),
        ([{"text": ""}], "item 1: text: "),
        ([{"question": "?", "out_of_place": "("}], "item 1: out_of_place: "),
        (
            [{"prompt": "?"}],
            "item 1: its fields are prompt; give one of question+choices+gold, question+answer, question+out_of_place",
        ),
        ([{"text": "a"}, {"question": "?", "answer": "b"}], "item 2: its fields are question, answer; give the first"),
    ],
)
def test_an_item_of_no_kind_is_refused_in_one_line(tmp_path: Path, items: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        config(tmp_path, *items)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
