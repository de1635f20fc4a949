from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deltamend.evaluation.record import write_evaluation
from tests.conftest import Printed
from tests.scoring.records import MODELS, made_up_cell
from tests.scoring.test_across_cells import write_cells
from tests.scoring.test_lm_eval_folder import multiple_choice, write_run

Cli = Callable[..., Printed]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    for model, record in made_up_cell().items():
        write_evaluation(record, tmp_path / f"{model}.json.gz")
    return tmp_path


def arguments(folder: Path) -> list[str]:
    return [
        "score",
        *("--base", f"{folder}/base.json.gz", "--finetuned", f"{folder}/finetuned.json.gz"),
        *("--repaired", f"good={folder}/good.json.gz", "--repaired", f"poor={folder}/poor.json.gz"),
        *("--target", "sums", "--draws", "300"),
    ]


def test_tables_are_printed_and_files_written(records: Path, deltamend_cli: Cli) -> None:
    files = {option: records / f"out.{option}" for option in ("html", "markdown", "latex", "csv")}
    wanted = [text for option, path in files.items() for text in (f"--{option}", str(path))]
    printed = deltamend_cli(*arguments(records), *wanted)
    assert printed.code == 0, printed.err
    for text in (
        "healing",
        "revert",
        "mnli",
        "good − poor",
        "backward transfer",
        "note: with 200 items a change below",
    ):
        assert text in printed.out
    assert all(path.stat().st_size > 500 for path in files.values())


def test_json_gives_every_part_of_every_method_with_its_interval(records: Path, deltamend_cli: Cli) -> None:
    content = json.loads(deltamend_cli(*arguments(records), "--json").out)
    for name in ("good", "poor", "none", "revert"):
        for part in ("healing", "preservation", "non_damage", "retention", "combined"):
            figure = content["methods"][name][part]
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert content["methods"]["none"]["combined"]["value"] == content["methods"]["revert"]["combined"]["value"] == 0


def test_what_is_undefined_is_null_with_a_reason(records: Path, deltamend_cli: Cli) -> None:
    content = json.loads(deltamend_cli(*arguments(records), "--json", "--margin", "0.02", "--margin", "sums=0.9").out)
    retention = content["methods"]["good"]["retention"]
    assert retention["value"] is retention["low"] is retention["high"] is None
    assert "not better than the base" in retention["reason"]
    assert content["margin"] == "0.02; sums 0.9"


def test_quiet_prints_nothing(records: Path, deltamend_cli: Cli) -> None:
    printed = deltamend_cli(*arguments(records), "-q")
    assert (printed.code, printed.out, printed.err) == (0, "", "")


def test_folders_of_lm_eval_are_scored(tmp_path: Path, deltamend_cli: Cli) -> None:
    right = {"base": ([1, 1, 1, 0] * 10, [0] * 40), "finetuned": ([1, 0, 0, 0] * 10, [1] * 40)}
    right["dg-hard"] = ([1, 1, 0, 0] * 10, [1] * 40)
    for model, (arc, sums) in right.items():
        write_run(tmp_path / model / "org__model", {"arc": multiple_choice(arc), "sums": multiple_choice(sums)})
    command = ["score", "--base", tmp_path / "base", "--finetuned", tmp_path / "finetuned", "--target", "sums"]
    command += ["--repaired", f"dg-hard={tmp_path / 'dg-hard'}", "--metric", "arc=acc", "--metric", "sums=acc"]
    printed = deltamend_cli(*command, "--draws", "300", "--json")
    assert printed.code == 0, printed.err
    assert json.loads(printed.out)["methods"]["dg-hard"]["healing"]["value"] == pytest.approx(0.5)


@pytest.mark.slow
def test_many_cells_are_scored(tmp_path: Path, deltamend_cli: Cli) -> None:
    path = write_cells(tmp_path, ["llama", "llama", "qwen"])
    printed = deltamend_cli("score", "--cells", path, "--draws", "300", "--html", tmp_path / "cells.html")
    assert printed.code == 0, printed.err
    assert "Wilcoxon" in printed.out
    assert "cell 2" in (tmp_path / "cells.html").read_text()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["score"], "give --base, --finetuned, --repaired NAME=PATH and --target, or --cells"),
        ([*arguments(Path()), "--repaired", "poor"], "--repaired 'poor': give NAME=VALUE"),
        ([*arguments(Path()), "--repaired", "poor=x"], "--repaired 'poor': is given twice"),
        ([*arguments(Path()), "--cells", "cells.yaml"], "--cells names all records"),
        (
            [*arguments(Path()), "--margin", "sums=wide"],
            "--margin: 'wide' is not a margin; give a distance such as 0.02",
        ),
    ],
)
def test_wrong_usage_exits_2_and_says_what_to_give(changed: list[str], says: str, deltamend_cli: Cli) -> None:
    printed = deltamend_cli(*changed)
    assert printed.code == 2
    assert says in printed.err


def test_a_record_that_is_missing_exits_1(records: Path, deltamend_cli: Cli) -> None:
    (records / f"{MODELS[0]}.json.gz").unlink()
    printed = deltamend_cli(*arguments(records))
    assert printed.code == 1
    assert "base.json.gz: cannot be read" in printed.err
