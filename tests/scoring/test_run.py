from __future__ import annotations

import math
import random

import numpy as np
import pytest

from tests.scoring.records import made_up_cell, record, task
from tests.scoring.scored_records import scored


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
