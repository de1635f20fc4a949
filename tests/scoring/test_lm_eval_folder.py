"""Folders as lm-eval 0.4.13 lays them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltamend.errors import EvaluationError
from deltamend.scoring.lm_eval_folder import read_lm_eval_folder

DATE = "2026-11-24T11-20-42.442699"
Lines = list[dict[str, Any]]


def sample(number: int, scores: dict[str, Any], *, choices: int = 2, filter_: str = "none") -> dict[str, Any]:
    return {
        "doc_id": number,
        "resps": [[["-1.0", "False"]]] * choices,
        "filter": filter_,
        "metrics": list(scores),
        "doc_hash": f"d{number}",
        "prompt_hash": f"p{number}",
        "target_hash": f"t{number}",
        **scores,
    }


def multiple_choice(right: list[int]) -> Lines:
    return [sample(number, {"acc": float(one), "acc_norm": float(1 - one)}) for number, one in enumerate(right)]


def figures(lines: Lines) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for line in lines:
        for metric in line["metrics"]:
            if isinstance(line[metric], float):
                found.setdefault(f"{metric},{line['filter']}", []).append(line[metric])
    return {key: sum(values) / len(values) for key, values in found.items()}


def write_run(folder: Path, tasks: dict[str, Lines], *, date: str = DATE, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    run: dict[str, Any] = {
        "results": {name: {"alias": name, "sample_len": len(lines), **figures(lines)} for name, lines in tasks.items()},
        "group_subtasks": {name: [] for name in tasks},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 5),
        "n-samples": {name: {"effective": len({line["doc_id"] for line in lines})} for name, lines in tasks.items()},
        "config": {"random_seed": 0},
        "model_name": "org/model",
        "lm_eval_version": "0.4.13",
    }
    run.pop("group_subtasks")
    for field, value in more.items():
        run[field] = {**run.get(field, {}), **value}
    for name, lines in tasks.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"samples_{name}_{date}.jsonl").write_text(text)
    path = folder / f"results_{date}.json"
    path.write_text(json.dumps(run))
    return path


def test_a_run_in_the_folder_of_its_model_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "org__model", {"arc_easy": multiple_choice([1, 0, 0, 0])})
    record, said = read_lm_eval_folder(tmp_path)
    task = record.tasks["arc_easy"]
    assert (record.model, task.metric, task.mean, task.fewshot, task.chance) == (
        "org/model",
        "acc_norm,none",
        0.75,
        5,
        0.5,
    )
    assert said == []


def test_another_metric_can_be_chosen(tmp_path: Path) -> None:
    write_run(tmp_path, {"arc_easy": multiple_choice([1, 0, 0, 0])})
    assert read_lm_eval_folder(tmp_path, {"arc_easy": "acc"})[0].tasks["arc_easy"].mean == 0.25
    with pytest.raises(EvaluationError, match=r"'arc_easy': has no metric 'f1'.*acc,none, acc_norm,none"):
        read_lm_eval_folder(tmp_path, {"arc_easy": "f1"})


def test_of_several_filters_the_strict_one_is_read_and_each_item_once(tmp_path: Path) -> None:
    strict = [sample(n, {"exact_match": float(n == 0)}, choices=1, filter_="strict-match") for n in range(4)]
    loose = [sample(n, {"exact_match": 1.0}, choices=1, filter_="flexible-extract") for n in range(4)]
    write_run(tmp_path, {"gsm8k": [*loose, *strict]})
    task = read_lm_eval_folder(tmp_path)[0].tasks["gsm8k"]
    assert (task.metric, task.mean, len(task.items), task.chance) == ("exact_match,strict-match", 0.25, 4, None)
    chosen = read_lm_eval_folder(tmp_path, {"gsm8k": "exact_match,flexible-extract"})[0].tasks["gsm8k"]
    assert chosen.mean == 1


def test_metrics_that_are_lists_are_passed_over(tmp_path: Path) -> None:
    lines = [sample(n, {"inst_level_strict_acc": [True, False], "prompt_level_strict_acc": 1.0}) for n in range(3)]
    write_run(tmp_path, {"ifeval": lines})
    assert read_lm_eval_folder(tmp_path)[0].tasks["ifeval"].metric == "prompt_level_strict_acc,none"


def test_a_nested_group_with_a_figure_becomes_one_task(tmp_path: Path) -> None:
    tasks = {
        "mmlu_law": multiple_choice([0, 1]),
        "mmlu_art": multiple_choice([0, 0, 1, 0]),
        "piqa": multiple_choice([1]),
    }
    write_run(
        tmp_path,
        tasks,
        results={"mmlu": {"acc,none": 2 / 6}, "mmlu_humanities": {"acc,none": 2 / 6}},
        groups={"mmlu": {"acc,none": 2 / 6}, "mmlu_humanities": {"acc,none": 2 / 6}},
        group_subtasks={"mmlu": ["mmlu_humanities"], "mmlu_humanities": ["mmlu_law", "mmlu_art"]},
    )
    record, _ = read_lm_eval_folder(tmp_path)
    assert set(record.tasks) == {"mmlu", "piqa"}
    assert record.tasks["mmlu"].metric == "acc,none"
    assert record.tasks["mmlu"].mean == pytest.approx(2 / 6)
    assert {item.id for item in record.tasks["mmlu"].items} >= {"mmlu_law/0", "mmlu_art/3"}


def test_a_group_without_a_figure_is_left_apart(tmp_path: Path) -> None:
    tasks = {"a": multiple_choice([0, 1]), "b": multiple_choice([0])}
    write_run(tmp_path, tasks, results={"suite": {"alias": "suite"}}, group_subtasks={"suite": ["a", "b"]})
    assert set(read_lm_eval_folder(tmp_path)[0].tasks) == {"a", "b"}


def test_the_newest_of_several_runs_is_read_and_that_is_said(tmp_path: Path) -> None:
    write_run(tmp_path, {"arc": multiple_choice([0, 0])}, date="2026-01-01T00-00-00.000000")
    write_run(tmp_path, {"arc": multiple_choice([1, 1])}, date="2026-02-01T00-00-00.000000")
    record, said = read_lm_eval_folder(tmp_path, {"arc": "acc"})
    assert record.tasks["arc"].mean == 1
    assert "2 runs; of each task the newest counts: arc from results_2026-02-01T00-00-00.000000.json" in said[0]
    older = read_lm_eval_folder(tmp_path / "results_2026-01-01T00-00-00.000000.json", {"arc": "acc"})[0]
    assert older.tasks["arc"].mean == 0


def test_tasks_that_were_run_one_after_another_are_all_there_each_from_its_newest_run(tmp_path: Path) -> None:
    write_run(tmp_path, {"arc": multiple_choice([0, 0]), "sums": multiple_choice([0, 0])}, date="2026-01-01T00-00-00.0")
    write_run(tmp_path, {"piqa": multiple_choice([1, 1])}, date="2026-02-01T00-00-00.0")
    write_run(tmp_path, {"sums": multiple_choice([1, 1])}, date="2026-03-01T00-00-00.0")
    metrics = dict.fromkeys(("arc", "sums", "piqa"), "acc")
    record, said = read_lm_eval_folder(tmp_path, metrics)
    assert {name: task.mean for name, task in record.tasks.items()} == {"arc": 0, "sums": 1, "piqa": 1}
    assert "sums from results_2026-03-01T00-00-00.0.json; piqa from" in said[0]
    (tmp_path / "results_2026-01-01T00-00-00.0.json").write_text("{")  # not needed for what is wanted
    assert set(read_lm_eval_folder(tmp_path, metrics, ["sums", "piqa"])[0].tasks) == {"sums", "piqa"}
    with pytest.raises(EvaluationError, match="results_2026-01-01"):
        read_lm_eval_folder(tmp_path, metrics)


def test_a_member_that_was_run_again_alone_is_not_counted_beside_its_group(tmp_path: Path) -> None:
    tasks = {"law": multiple_choice([0, 1]), "art": multiple_choice([0, 0, 1, 0])}
    groups = {"mmlu": {"acc,none": 2 / 6}}
    write_run(tmp_path, tasks, results=groups, groups=groups, group_subtasks={"mmlu": ["law", "art"]})
    write_run(tmp_path, {"law": multiple_choice([1, 1])}, date="2027-01-01T00-00-00.0")
    assert set(read_lm_eval_folder(tmp_path)[0].tasks) == {"mmlu"}
    assert set(read_lm_eval_folder(tmp_path, wanted=["law"])[0].tasks) == {"law"}


def without_a_number(count: int) -> Lines:
    return [sample(number, {"word_perplexity": [-8.4, 2]}, choices=1) for number in range(count)]


def test_a_task_without_a_number_an_item_does_not_stop_the_others(tmp_path: Path) -> None:
    tasks = {"arc": multiple_choice([0, 1]), "wikitext": without_a_number(2)}
    write_run(tmp_path, tasks, results={"wikitext": {"word_perplexity,none": 848.7}})
    assert set(read_lm_eval_folder(tmp_path, wanted=["arc"])[0].tasks) == {"arc"}
    record, said = read_lm_eval_folder(tmp_path)
    assert set(record.tasks) == {"arc"}
    assert f"wikitext: left out, as none of its metrics is one number for each item (results_{DATE}.json)" in said
    for wanted, metrics in ((["wikitext"], None), (None, {"wikitext": "word_perplexity"})):
        with pytest.raises(EvaluationError, match="'wikitext': none of its metrics is one number for each item"):
            read_lm_eval_folder(tmp_path, metrics, wanted)
    with pytest.raises(EvaluationError, match=r"has no task 'sums' \(there are: arc, wikitext\); evaluate it"):
        read_lm_eval_folder(tmp_path, wanted=["sums"])


def test_runs_of_several_models_are_not_guessed_between(tmp_path: Path) -> None:
    for model in ("one", "two"):
        write_run(tmp_path / model, {"arc": multiple_choice([0, 1])})
    with pytest.raises(EvaluationError, match="several models"):
        read_lm_eval_folder(tmp_path)


def test_samples_that_are_missing_broken_or_too_few_stop_it(tmp_path: Path) -> None:
    write_run(tmp_path, {"arc": multiple_choice([0, 1, 1])})
    samples = tmp_path / f"samples_arc_{DATE}.jsonl"
    lines = samples.read_text().splitlines()
    samples.write_text("\n".join(lines[:2]))
    with pytest.raises(EvaluationError, match="2 of 3 items"):
        read_lm_eval_folder(tmp_path)
    samples.write_text(lines[0] + "\n" + lines[1][:40])
    with pytest.raises(EvaluationError, match="line 2 is not JSON"):
        read_lm_eval_folder(tmp_path)
    samples.unlink()
    with pytest.raises(EvaluationError, match="--log_samples"):
        read_lm_eval_folder(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"has no results_\*\.json"):
        read_lm_eval_folder(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"results": {}}', '{"results": {"a": {"acc,none": 1}}, "n-shot": 3}'])
def test_a_results_file_that_is_none_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / f"results_{DATE}.json").write_text(content)
    with pytest.raises(EvaluationError) as caught:
        read_lm_eval_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_task_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"arc": multiple_choice([0, 1])}, results={"x/../../secret": {"acc,none": 1.0}})
    (tmp_path / f"secret_{DATE}.jsonl").write_text("{}")
    with pytest.raises(EvaluationError, match="is not the name of a task"):
        read_lm_eval_folder(tmp_path / "run")


def test_an_answer_may_hold_any_line_separator(tmp_path: Path) -> None:
    lines = [{**line, "doc": {"question": "one\u2028two\x0cthree\x85four"}} for line in multiple_choice([0, 1])]
    write_run(tmp_path, {"arc": lines})
    assert len(read_lm_eval_folder(tmp_path)[0].tasks["arc"].items) == 2


def test_a_figure_that_is_no_mean_of_items_is_said(tmp_path: Path) -> None:
    write_run(tmp_path, {"arc": multiple_choice([0, 1])}, results={"arc": {"acc,none": 0.9}})
    _, said = read_lm_eval_folder(tmp_path, {"arc": "acc"})
    assert "0.9000 is no plain mean" in said[0]


def test_a_metric_that_is_better_when_lower_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, {"arc": multiple_choice([0, 1])}, higher_is_better={"arc": {"acc": False}})
    with pytest.raises(EvaluationError, match="better when lower"):
        read_lm_eval_folder(tmp_path, {"arc": "acc"})
