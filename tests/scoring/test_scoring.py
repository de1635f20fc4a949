from __future__ import annotations

import math
import random

import numpy as np
import pytest

import deltamend
from deltamend.errors import EvaluationError, UsageError
from deltamend.evaluation.record import Evaluation, TaskScores
from deltamend.scoring.cell_score import score_cells
from deltamend.scoring.paired_cell import open_cell
from deltamend.scoring.result import Score
from deltamend.scoring.settings import Settings
from tests.scoring.records import MODELS, made_up_cell, record, task

DRAWS = 400


def scored(records: dict[str, Evaluation], **options: object) -> Score:
    repaired = {name: records[name] for name in records if name not in ("base", "finetuned")}
    arguments: dict[str, object] = {"target": "sums", "draws": DRAWS, **options}
    return deltamend.score(records["base"], records["finetuned"], repaired, **arguments)  # type: ignore[arg-type]


def change_task(of: Evaluation, name: str, **fields: object) -> Evaluation:
    return of.model_copy(update={"tasks": {**of.tasks, name: of.tasks[name].model_copy(update=fields)}})


def test_none_and_revert_are_always_there_and_come_out_at_0() -> None:
    methods = scored(made_up_cell()).methods
    assert list(methods) == ["good", "poor", "none", "revert"]
    for name, part in (("none", "healing"), ("revert", "retention")):
        for figure in (getattr(methods[name], part), methods[name].combined):
            assert (figure.value, figure.low, figure.high) == (0, 0, 0)
    assert methods["none"].naive_recovery.value == 0
    assert methods["revert"].backward_transfer.value == 0


def test_every_figure_lies_in_its_interval_and_the_better_repair_is_found() -> None:
    found = scored(made_up_cell(400))
    for of in found.methods.values():
        for name in ("healing", "preservation", "non_damage", "retention", "combined"):
            figure = getattr(of, name)
            assert figure.low <= figure.value <= figure.high
            assert 0 <= figure.low <= figure.high <= (100 if name == "combined" else 1)
    (difference,) = found.differences
    assert difference.combined.low is not None
    assert difference.combined.low > 0


def test_the_order_of_items_and_methods_does_not_matter() -> None:
    records = made_up_cell()
    shuffled = {
        name: of.model_copy(
            update={
                "tasks": {
                    key: task.model_copy(
                        update={"items": tuple(random.Random(name).sample(task.items, len(task.items)))}
                    )
                    for key, task in reversed(of.tasks.items())
                }
            }
        )
        for name, of in records.items()
    }
    one = scored(records)
    other = scored({name: shuffled[name] for name in ("poor", "good", "finetuned", "base")})
    assert one.methods == other.methods
    assert one.benchmarks == other.benchmarks
    assert one.differences[0].combined.value == -(other.differences[0].combined.value or math.nan)


def test_names_of_methods_and_other_methods_do_not_matter() -> None:
    records = made_up_cell()
    one = scored(records)
    renamed = scored({"base": records["base"], "finetuned": records["finetuned"], "x": records["good"]})
    assert one.methods["good"] == renamed.methods["x"]


def test_the_oracle_gets_100() -> None:
    records = made_up_cell()
    oracle = {
        name: max(records["base"].tasks[name], records["finetuned"].tasks[name], key=lambda task: task.mean)
        for name in records["base"].tasks
    }
    found = scored({**records, "oracle": record(oracle)}).methods["oracle"]
    assert found.combined.value == pytest.approx(100)


def test_what_is_undefined_is_named_and_has_no_interval() -> None:
    same = made_up_cell()
    found = scored({**same, "finetuned": same["base"]})
    good = found.methods["good"]
    assert good.healing.value is None
    assert good.healing.low is None
    assert "damaged no benchmark" in (good.healing.reason or "")
    assert "not better than the base" in (good.retention.reason or "")
    assert good.non_damage.value is not None
    assert any("nothing to heal" in note for note in found.notes)
    assert any("nothing to retain" in note for note in found.notes)


def test_a_fixed_margin_for_one_task_moves_it_to_neutral() -> None:
    records = made_up_cell()
    groups = {task.name: task.group for task in scored(records).benchmarks}
    assert groups == {"arc": "damaged", "gsm8k": "improved", "mmlu": "damaged", "mnli": "neutral"}
    wide = {task.name: task for task in scored(records, task_margins={"arc": 0.5}).benchmarks}
    assert (wide["arc"].group, wide["arc"].margin) == ("neutral", 0.5)
    assert wide["mmlu"].group == "damaged"
    with pytest.raises(UsageError, match="no such task"):
        scored(records, task_margins={"none such": 0.5})


def test_the_default_margin_is_the_standard_error_of_the_paired_difference() -> None:
    records = made_up_cell()
    arc = next(task for task in scored(records).benchmarks if task.name == "arc")
    ours, theirs = ([item.score for item in records[name].tasks["arc"].items] for name in ("base", "finetuned"))
    difference = np.subtract(theirs, ours)
    assert arc.margin == pytest.approx(difference.std(ddof=1) / math.sqrt(difference.size))
    double = next(task for task in scored(records, margin="2se").benchmarks if task.name == "arc")
    assert double.margin == pytest.approx(2 * arc.margin)


def test_chance_is_taken_off_where_it_is_known() -> None:
    records = {name: change_task(of, "arc", chance=0.25) for name, of in made_up_cell().items()}
    found = scored(records, chance_corrected=True)
    arc = next(task for task in found.benchmarks if task.name == "arc")
    assert arc.base.value == pytest.approx((0.62 - 0.25) / 0.75, abs=1e-9)
    assert any("not corrected for chance" in note and "mmlu" in note for note in found.notes)
    plain = next(task for task in scored(records).benchmarks if task.name == "arc")
    assert arc.methods["good"].p == plain.methods["good"].p is not None


def _with_items(of: TaskScores, start: int) -> dict[str, object]:
    return {"items": of.items[start:]}


def test_other_items_prompts_or_definitions_are_errors_that_name_the_task() -> None:
    records = made_up_cell()
    arc = records["good"].tasks["arc"]
    fewer = {**records, "good": change_task(records["good"], "arc", **_with_items(arc, 3))}
    with pytest.raises(EvaluationError, match=r"task 'arc': base and good do not have the same items"):
        scored(fewer)
    asked = arc.items[0].model_copy(update={"prompt_hash": "other"})
    other = {**records, "good": change_task(records["good"], "arc", items=(asked, *arc.items[1:]))}
    with pytest.raises(EvaluationError, match=r"task 'arc': base and good were asked 1 items with other prompts"):
        scored(other)
    with pytest.raises(EvaluationError, match="task 'arc': version"):
        scored({**records, "good": change_task(records["good"], "arc", version="2")})
    assert "arc: 199 of 200 items are shared" in scored(other, common_items=True).notes[0]


def test_a_task_that_is_missing_is_an_error_or_left_out() -> None:
    records = made_up_cell()
    tasks = {name: task for name, task in records["good"].tasks.items() if name != "mmlu"}
    lacking = {**records, "good": records["good"].model_copy(update={"tasks": tasks})}
    with pytest.raises(EvaluationError, match=r"task 'mmlu': good lacks it"):
        scored(lacking)
    found = scored(lacking, common_items=True)
    assert "mmlu" not in [task.name for task in found.benchmarks]
    assert "mmlu: left out, as good lacks it" in found.notes
    with pytest.raises(EvaluationError, match="is the target and not in every record"):
        scored(lacking, target="mmlu", common_items=True)


def test_the_target_may_be_in_records_of_its_own() -> None:
    records = made_up_cell()
    apart = {name: of.model_copy(update={"tasks": {"sums": of.tasks["sums"]}}) for name, of in made_up_cell().items()}
    rest = {
        name: of.model_copy(update={"tasks": {key: own for key, own in of.tasks.items() if key != "sums"}})
        for name, of in records.items()
    }
    assert scored(rest, target_files=apart).methods == scored(records).methods
    with pytest.raises(UsageError, match="--target-file: give one for each of base, finetuned, good, poor"):
        scored(rest, target_files={"base": apart["base"]})


def test_only_the_benchmarks_named_are_scored() -> None:
    found = scored(made_up_cell(), benchmarks=["arc", "mnli"])
    assert [task.name for task in found.benchmarks] == ["arc", "mnli"]


@pytest.mark.parametrize("name", ["none", "revert", "base", "finetuned", ""])
def test_a_method_may_not_take_the_name_of_another_model(name: str) -> None:
    records = made_up_cell()
    with pytest.raises(UsageError, match="not a name to use"):
        deltamend.score(records["base"], records["finetuned"], {name: records["good"]}, target="sums")


@pytest.mark.parametrize(
    "options",
    [{"draws": 10}, {"confidence": 95}, {"seed": -1}, {"margin": "wide"}, {"margin": -0.1}, {"margin": "nan"}],
)
def test_numbers_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        scored(made_up_cell(), **options)


def test_a_weak_figure_stays_marked_and_text_that_cannot_be_shown_is_refused() -> None:
    records = {name: change_task(of, "mnli", weak="string matching") for name, of in made_up_cell().items()}
    assert next(task for task in scored(records).benchmarks if task.name == "mnli").weak == "string matching"
    hostile = {name: change_task(of, "mnli", weak="\x1b[2J") for name, of in records.items()}
    with pytest.raises(EvaluationError, match="cannot be shown"):
        scored(hostile)


def test_cells_scored_together_get_the_figures_they_get_alone() -> None:
    settings = Settings(draws=DRAWS)
    cells = [
        open_cell(
            records["base"],
            records["finetuned"],
            {name: records[name] for name in MODELS[2:]},
            target="sums",
            name=str(seed),
        )
        for seed, records in ((seed, made_up_cell(seed=seed)) for seed in range(2))
    ]
    together = score_cells(cells, settings)
    assert together == [score_cells([cell], settings)[0] for cell in cells]


def test_likelihoods_below_zero_can_be_scored() -> None:
    values = {"base": -1.0, "finetuned": -2.0, "good": -1.5}
    random_ = np.random.default_rng(0)
    noise = 0.1 * random_.standard_normal(100)
    right = {"base": 0.0, "finetuned": 1.0, "good": 1.0}
    records = {
        name: record({"prose": task(value + noise), "sums": task([right[name]] * 100)})
        for name, value in values.items()
    }
    assert scored(records).methods["good"].healing.value == pytest.approx(0.5)


def test_another_judge_is_said() -> None:
    records = {name: of.model_copy(update={"settings": {"judge": "strings"}}) for name, of in made_up_cell().items()}
    assert not any("judge" in note for note in scored(records).notes)
    other = {**records, "good": records["good"].model_copy(update={"settings": {"judge": "model"}})}
    assert "good was evaluated with judge model, the base with judge strings" in scored(other).notes


def test_models_with_the_same_weights_are_said() -> None:
    records = made_up_cell()
    hashed = {name: of.model_copy(update={"model_hash": name}) for name, of in records.items()}
    assert not any("same weights" in note for note in scored(hashed).notes)
    same = {**hashed, "good": records["good"].model_copy(update={"model_hash": "finetuned"})}
    assert "finetuned and good have the same weights" in scored(same).notes
