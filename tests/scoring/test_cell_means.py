from __future__ import annotations

import math

import numpy as np
import pytest

from deltamend.errors import UsageError
from deltamend.scoring.cell_score import score_cells
from deltamend.scoring.paired_cell import open_cell
from deltamend.scoring.settings import Settings
from tests.scoring.records import MODELS, made_up_cell
from tests.scoring.scored_records import DRAWS, change_task, scored


def test_a_fixed_margin_for_one_task_moves_it_to_neutral() -> None:
    records = made_up_cell()
    groups = {task.name: task.group for task in scored(records).benchmarks}
    assert groups == {"arc": "damaged", "gsm8k": "improved", "mmlu": "damaged", "mnli": "neutral"}
    wide = {task.name: task for task in scored(records, task_margins={"arc": 0.5}).benchmarks}
    assert (wide["arc"].group, wide["arc"].margin) == ("neutral", 0.5)
    assert wide["mmlu"].group == "damaged"
    with pytest.raises(UsageError, match="there is no task"):
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
