"""What holds of every score, from items on: made-up answers of four models on three benchmarks and a target."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import deltamend
from deltamend.evaluation.record import Evaluation
from deltamend.scoring.metric import FloatArray
from deltamend.scoring.result import Score
from tests.scoring.records import record, task

TASKS = ("arc", "mmlu", "mnli", "sums")
MODELS = ("base", "finetuned", "one", "other")

answers = hnp.arrays(np.float64, (len(TASKS), 24, len(MODELS)), elements=st.sampled_from([0.0, 1.0]))
few = settings(max_examples=25, deadline=None)


def records_of(scores: FloatArray) -> dict[str, Evaluation]:
    return {
        model: record({name: task(scores[index, :, column]) for index, name in enumerate(TASKS)})
        for column, model in enumerate(MODELS)
    }


def scored(records: dict[str, Evaluation], names: tuple[str, ...] = MODELS[2:]) -> Score:
    repaired = {name: records[name] for name in names}
    return deltamend.score(records["base"], records["finetuned"], repaired, target="sums", draws=100)


@pytest.mark.slow
@few
@given(scores=answers)
def test_every_figure_and_interval_is_on_its_scale(scores: FloatArray) -> None:
    for of in scored(records_of(scores)).methods.values():
        for part, top in (("healing", 1), ("preservation", 1), ("non_damage", 1), ("retention", 1), ("combined", 100)):
            figure = getattr(of, part)
            assert figure.value is None or 0 <= figure.value <= top
            assert figure.low is None or 0 <= figure.low <= figure.high <= top
            assert (figure.value is None or figure.low is None) == (figure.reason is not None)


@pytest.mark.slow
@few
@given(scores=answers)
def test_revert_retains_nothing_and_none_heals_nothing(scores: FloatArray) -> None:
    methods = scored(records_of(scores)).methods
    for name, part in (("none", "healing"), ("revert", "retention")):
        if getattr(methods[name], part).value is not None:
            assert getattr(methods[name], part).value == 0
            assert methods[name].combined.value == 0


@pytest.mark.slow
@few
@given(scores=answers)
def test_the_best_of_base_and_finetuned_on_each_task_gets_100(scores: FloatArray) -> None:
    records = records_of(scores)
    base, finetuned = records["base"].tasks, records["finetuned"].tasks
    best = {name: max(base[name], finetuned[name], key=lambda of: of.mean) for name in TASKS}
    combined = scored({**records, "oracle": record(best)}, ("oracle",)).methods["oracle"].combined.value
    assert combined is None or abs(combined - 100) < 1e-9


@pytest.mark.slow
@few
@given(scores=answers, seed=st.integers(0, 1000))
def test_order_and_names_do_not_matter(scores: FloatArray, seed: int) -> None:
    records = records_of(scores)
    shuffle = random.Random(seed)

    def shuffled(of: Evaluation) -> Evaluation:
        tasks = {
            name: own.model_copy(update={"items": tuple(shuffle.sample(own.items, len(own.items)))})
            for name, own in shuffle.sample([*of.tasks.items()], len(of.tasks))
        }
        return of.model_copy(update={"tasks": tasks})

    renamed = {"base": "base", "finetuned": "finetuned", "one": "zebra", "other": "aardvark"}
    changed = {renamed[name]: shuffled(of) for name, of in records.items()}
    one, other = scored(records), scored(changed, ("aardvark", "zebra"))
    for name in MODELS[2:]:
        assert one.methods[name] == other.methods[renamed[name]]
