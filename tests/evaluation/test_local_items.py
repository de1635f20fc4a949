from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from deltamend.errors import EvaluationError
from deltamend.evaluation.lm_eval_tasks import LoadedTask, TaskLoader, check_requirements, find_file
from deltamend.evaluation.local_items import ITEM_ID, task_rows
from deltamend.evaluation.suite import SuiteTask, read_suite, shipped_suites
from deltamend.evaluation.third_party_output import third_parties_quiet
from tests.evaluation.conftest import write_items

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:lm_eval", "ignore::DeprecationWarning:datasets")


GOOD = '{"id": 1, "question": "x", "choices": ["a"], "gold": 0}\n'


def load(task: str, *items: dict[str, Any], folder: Path, **entry: Any) -> LoadedTask:
    write_items(folder / f"{task}.jsonl", items)
    with third_parties_quiet():
        return TaskLoader().load(SuiteTask(name=task, task=task, file=f"{task}.jsonl", **entry), (folder,))


def asked(loaded: LoadedTask) -> tuple[str, list[str], Any]:
    """Prompt, choices and answer of the first item, as lm-eval's own task makes them."""
    (task,) = loaded.members.values()
    doc = task.eval_docs[0]
    return task.doc_to_text(doc), task.doc_to_choice(doc), task.doc_to_target(doc)


def test_lm_eval_asks_arc_as_it_asks_the_hubs(tmp_path: Path) -> None:
    item = {"id": 7, "question": "Why?", "choices": ["a", "b"], "gold": 1}
    loaded = load("arc_challenge", item, folder=tmp_path)
    assert asked(loaded) == ("Question: Why?\nAnswer:", ["a", "b"], 1)
    assert loaded.members["arc_challenge"].eval_docs[0][ITEM_ID] == "7"


def test_lm_eval_asks_mnli_as_it_asks_the_hubs(tmp_path: Path) -> None:
    labels = ["entailment", "neutral", "contradiction"]
    item = {"id": 1, "premise": "It rains.", "hypothesis": "It is dry", "choices": labels, "gold": 2}
    text, choices, gold = asked(load("mnli", item, folder=tmp_path))
    assert text == "It rains.\nQuestion: It is dry. True, False or Neither?\nAnswer:"
    assert choices[gold] == "False"


def test_hellaswags_second_context_is_told_apart_and_capitalised(tmp_path: Path) -> None:
    begun = {
        "id": 1,
        "activity": "Lifting",
        "question": "A lady walks. She bends. the lady",
        "choices": ["a", "b"],
        "gold": 0,
    }
    whole = {
        "id": 2,
        "activity": "Home",
        "question": "How to cure olives. Pick them.",
        "choices": ["a", "b"],
        "gold": 1,
    }
    loaded = load("hellaswag", begun, whole, folder=tmp_path)
    docs = loaded.members["hellaswag"].eval_docs
    assert docs[0]["query"] == "Lifting: A lady walks. She bends. The lady"
    assert docs[1]["query"] == "Home: How to cure olives. Pick them."


def test_mmlu_is_a_group_of_subjects_each_with_its_own_worked_examples(tmp_path: Path) -> None:
    def item(subject: str, question: str) -> dict[str, Any]:
        return {"id": question, "subject": subject, "question": question, "choices": list("wxyz"), "gold": 3}

    write_items(tmp_path / "dev.jsonl", [item("anatomy", "Example?"), item("virology", "Other?")])
    asked_items = [item("anatomy", "One?"), item("virology", "Two?")]
    loaded = load("mmlu", *asked_items, folder=tmp_path, fewshot_file="dev.jsonl", fewshot=1)
    assert list(loaded.members) == ["mmlu_anatomy", "mmlu_virology"]
    assert loaded.is_group
    task = loaded.members["mmlu_anatomy"]
    prompt = task.fewshot_context(task.eval_docs[0], 1)
    assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.\n\nExample?\n")
    assert prompt.endswith("Answer: D\n\nOne?\nA. w\nB. x\nC. y\nD. z\nAnswer:")


@pytest.mark.parametrize("fewshot_file", [None, "dev.jsonl"])
def test_items_never_serve_as_their_own_worked_examples(tmp_path: Path, fewshot_file: str | None) -> None:
    def item(subject: str) -> dict[str, Any]:
        return {"subject": subject, "question": "?", "choices": list("wxyz"), "gold": 3}

    write_items(tmp_path / "dev.jsonl", [item("anatomy")])
    with pytest.raises(EvaluationError, match="no worked examples for mmlu_virology, and mmlu asks with 1"):
        load("mmlu", item("virology"), folder=tmp_path, fewshot_file=fewshot_file, fewshot=1)
    with pytest.raises(EvaluationError, match="no worked examples for gsm8k, and gsm8k asks with 5"):
        load("gsm8k", {"question": "?", "answer": "#### 1"}, folder=tmp_path)


def test_worked_examples_that_come_with_a_task_are_used(tmp_path: Path) -> None:
    (task,) = load("gsm8k_cot", {"question": "Why?", "answer": "#### 1"}, folder=tmp_path).members.values()
    assert task.fewshot_context(task.eval_docs[0], 8).startswith("Q: There are 15 trees in the grove.")


def test_copyright_behaviours_are_left_out_of_harmbench_and_a_context_stands_before_its_behaviour(
    tmp_path: Path,
) -> None:
    kinds = (("standard", ""), ("contextual", "A letter."), ("copyright", ""))
    items = [
        {"BehaviorID": kind, "Behavior": f"Do {kind}", "FunctionalCategory": kind, "ContextString": context}
        for kind, context in kinds
    ]
    rows = task_rows("harmbench", write_items(tmp_path / "h.jsonl", items))["harmbench"]
    assert [row["prompt"] for row in rows] == ["Do standard", "A letter.\n\n---\n\nDo contextual"]


def test_truthfulqas_right_answer_must_be_first_as_lm_eval_takes_it(tmp_path: Path) -> None:
    item = {"id": 0, "question": "?", "choices": ["a", "b"], "gold": 1, "mc2_choices": [], "mc2_labels": []}
    with pytest.raises(EvaluationError, match="gold is not 0"):
        task_rows("truthfulqa_mc1", write_items(tmp_path / "t.jsonl", [item]))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"question": "x"}\n', "item 1: no field 'choices'; arc_easy needs it"),
        ('{"question": "x", "choices": ["a"], "gold": 3}\n', "item 1: list index out of range"),
        ("{oops\n", "line 1: is not JSON"),
        ("[1]\n", "line 1: is not a JSON object"),
        (GOOD + GOOD, "line 2: a second item with the id '1'"),
        ("\n", "no items"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_that_names_the_item(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(lines)
    with pytest.raises(EvaluationError) as caught:
        task_rows("arc_easy", path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_is_found_in_the_folder_or_one_below_and_never_guessed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write_items(tmp_path / "one" / "a.jsonl", [{}])
    assert find_file("a.jsonl", (tmp_path,)) == tmp_path / "one" / "a.jsonl"
    write_items(tmp_path / "two" / "a.jsonl", [{}])
    with pytest.raises(EvaluationError, match="twice"):
        find_file("a.jsonl", (tmp_path,))
    with pytest.raises(EvaluationError, match="no such file"):
        find_file("b.jsonl", (tmp_path,))


@pytest.mark.slow
def test_what_a_task_wants_beside_its_items_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(
        EvaluationError, match=r'instructions: .*nltk\.downloader punkt_tab`, or leave it out with skip="instructions"'
    ):
        check_requirements(SuiteTask(name="instructions", task="ifeval"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EvaluationError, match="needs math-verify"):
        check_requirements(SuiteTask(name="math500", task="minerva_math500"))


def test_a_task_that_reads_no_local_files_says_which_do(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="'lambada' cannot read local files; one of mmlu, "):
        load("lambada", {"text": "x"}, folder=tmp_path)


def data() -> Path:
    """The folder of real items; the test is skipped where there is none."""
    folder = Path(os.environ.get("DELTAMEND_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no benchmark items: set DELTAMEND_DATA to a folder laid out as docs/evaluate.md says")
    return folder


SHIPPED = {str(entry.task): entry for name in shipped_suites() for entry in read_suite(name).tasks}


@pytest.mark.slow
@pytest.mark.parametrize("task", SHIPPED)
def test_lm_eval_asks_every_real_item(task: str) -> None:
    entry, folder = SHIPPED[task], data()
    try:
        check_requirements(entry)
    except EvaluationError as missing:
        pytest.skip(str(missing))
    with third_parties_quiet():
        loaded = TaskLoader().load(entry, (folder,))
    lines = find_file(str(entry.file), (folder,)).read_text(encoding="utf-8").rstrip().split("\n")
    asked_of = sum(len(member.eval_docs) for member in loaded.members.values())
    items = [json.loads(line) for line in lines]
    half = {"xstest_safe": 250, "xstest_unsafe": 200, "harmbench": 300}
    assert asked_of == half.get(task, len(items))
    if task == "hellaswag":
        docs = loaded.members[task].eval_docs
        assert all(doc["query"].startswith(f"{item['activity']}: ") for doc, item in zip(docs, items, strict=True))
