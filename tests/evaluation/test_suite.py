from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from deltamend.errors import EvaluationError, UsageError
from deltamend.evaluation.local_items import ROWS
from deltamend.evaluation.suite import read_suite, shipped_suites, suite_of_tasks, tasks_with_folders, without

GOOD = """
name: mine
version: "2"
tasks:
  - {name: arc, task: arc_easy, file: arc_easy.jsonl, metric: acc}
"""


def test_there_are_the_suites_of_the_docs() -> None:
    assert shipped_suites() == ["paper", "quick", "safety"]


def test_the_paper_has_its_nine_benchmarks() -> None:
    assert len(read_suite("paper").tasks) == 9


@pytest.mark.parametrize("name", ["paper", "quick", "safety"])
def test_every_task_of_a_shipped_suite_can_read_local_files(name: str) -> None:
    for task in read_suite(name).tasks:
        assert task.task in ROWS
        assert task.file is not None


def test_local_is_the_paper_over_files(tmp_path: Path) -> None:
    suite = read_suite(f"local:{tmp_path}")
    assert (suite.name, suite.folders) == ("paper", (tmp_path,))
    assert read_suite("paper").folders == ()


def test_the_files_of_a_suite_may_be_beside_it_or_in_a_folder_named_after_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    (tmp_path / "items").mkdir()
    assert read_suite(str(tmp_path / "mine.yaml")).folders == (tmp_path,)
    named = read_suite(f"{tmp_path / 'mine.yaml'}:{tmp_path / 'items'}")
    assert named.folders == (tmp_path / "items", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("metric: acc", "metrc: acc"), "tasks.0.metrc: there is no such field"),
        (GOOD.replace("task: arc_easy, file: arc_easy.jsonl, ", ""), "give task (a name lm-eval knows) or file"),
        (GOOD.replace("metric: acc", "prompt: x"), "prompt goes with a file without task"),
        (GOOD + "  - {name: arc, task: arc_easy}\n", "two tasks are called 'arc'"),
        (GOOD.replace('version: "2"\n', ""), "version: is missing"),
        ("[1, 2", "cannot be read as YAML"),
        ("just words", "is not a suite"),
        (GOOD + "folders: [x]\n", "folders: is not a field of a suite file"),
    ],
)
def test_a_wrong_suite_is_refused_in_one_line_that_names_the_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(EvaluationError) as caught:
        read_suite(str(path))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_the_suites_of_the_docs_and_the_gallery_are_suites(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs"
    block = re.search(
        r"(?:^    .*\n)+", (docs / "evaluate.md").read_text().partition("suite of your own")[2], re.MULTILINE
    )
    assert block is not None
    (tmp_path / "mine.yaml").write_text(textwrap.dedent(block.group()))
    assert [task.name for task in read_suite(str(tmp_path / "mine.yaml")).tasks] == ["arc", "sums"]
    assert len(read_suite(str(docs / "gallery" / "evaluations" / "suite.yaml")).tasks) == 8


def test_an_unknown_suite_is_wrong_usage_and_the_known_ones_are_named() -> None:
    with pytest.raises(UsageError, match=r"no suite 'papr'; there are paper, quick, safety, local:DIR"):
        read_suite("papr")
    with pytest.raises(UsageError, match="local:DIR"):
        read_suite("local")


def test_a_folder_or_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no such folder"):
        read_suite(f"quick:{tmp_path / 'gone'}")
    with pytest.raises(EvaluationError, match=r"gone\.yaml: cannot be read"):
        read_suite(str(tmp_path / "gone.yaml"))


def test_two_suites_with_a_task_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="'arc_challenge'"):
        tasks_with_folders([read_suite("paper"), read_suite("quick")])


def test_a_file_of_the_user_becomes_a_task_named_after_it() -> None:
    (task, other) = suite_of_tasks(["here/sums.jsonl", "arc_easy"]).tasks
    assert (task.name, task.task, task.chat) == ("sums", None, True)
    assert (other.name, other.task, other.file) == ("arc_easy", "arc_easy", None)


def test_benchmarks_are_left_out_by_name_and_never_in_silence() -> None:
    (left,) = without([read_suite("quick")], ["piqa", "winogrande"])
    assert [task.name for task in left.tasks] == ["arc_easy", "arc_challenge", "hellaswag"]
    with pytest.raises(UsageError, match="no benchmark 'mmlu'; there are arc_easy"):
        without([left], ["mmlu"])
    with pytest.raises(UsageError, match="skip: no benchmark is left"):
        without([left], ["arc_easy", "arc_challenge", "hellaswag"])
