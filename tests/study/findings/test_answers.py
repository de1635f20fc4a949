from __future__ import annotations

import pytest

from deltamend.study.findings.answers import answer_questions
from deltamend.study.findings.result_types import CONFIRMATION, Answer, StudyResults
from tests.study.findings.results_of_made_up import said

pytestmark = pytest.mark.slow


def test_only_what_stands_above_the_curve_is_said_to(results: StudyResults) -> None:
    assert results.curve is not None
    heights = {
        of.name: of.groups[CONFIRMATION].these_cells for of in results.curve.heights if CONFIRMATION in of.groups
    }
    assert (heights["ours"].low or 0.0) > 0
    assert (heights["hopeless"].high or 0.0) < 0
    above = said(results, "curve").split("Not told apart")[0].split("Below it")[0]
    assert "hopeless" not in above
    assert "ties" not in above
    assert "dare" in said(results, "curve").split("Not judged")[1]  # larger than the fine-tuned update itself


def test_what_only_tells_the_dtypes_apart_is_said_to_tell_little_else(results: StudyResults) -> None:
    assert results.dg_hard is not None
    first, *others = results.dg_hard.correlations
    told: list[str] = []
    two: tuple[dict[str, float], ...] = ({"bfloat16": 0.6, "float32": -0.7}, {"bfloat16": 0.6, "float32": 0.7}, {})
    for within in two:
        seen = {"over_clusters": 0.8, "clusters": 16, "p": 0.001, "within": within}
        mixed = first.model_copy(update=seen)
        dg_hard = results.dg_hard.model_copy(update={"correlations": (mixed, *others)})
        answer = answer_questions(results.model_copy(update={"dg_hard": dg_hard}))
        told.append(" ".join(next(of.sentences for of in answer if of.topic == "dg-hard")))
    apart = "it tells the dtypes apart, and little else (ρ = +0.80 over 16 clusters, p = 0.001; within bfloat16 +0.60; within float32 −0.70)"
    assert apart in told[0]
    assert "goes with more healing (ρ = +0.80 over 16 clusters, p = 0.001; within bfloat16 +0.60" in told[1]
    assert "goes with more healing (ρ = +0.80 over 16 clusters, p = 0.001)." in told[2]


def test_what_writing_costs_is_told_by_regime(results: StudyResults) -> None:
    (pair,) = results.written_differences
    assert (pair.regime, pair.first, pair.second) == ("bf16", "dg-hard-bf16", "dg-hard")
    assert (pair.retention.these_cells.high or 0.0) < 0
    assert "In bf16, dg-hard-bf16 minus dg-hard: retention −0." in said(results, "writing")


def test_refusals_are_told_with_how_weak_they_are(results: StudyResults) -> None:
    text = said(results, "refusals")
    assert (
        "xstest_unsafe, fine-tuned on sums: refused 80% by the base and 30% by the fine-tuned model, measurably changed"
        in text
    )
    assert "a weak judge" in text


def test_where_the_base_refuses_next_to_nothing_nothing_is_said_of_refusals(results: StudyResults) -> None:
    few = [
        of.model_copy(update={"share": of.share.model_copy(update={"value": 1 / of.prompts})})
        if (of.task, of.model) == ("xstest_unsafe", "base")
        else of
        for of in results.safety
    ]
    found = answer_questions(results.model_copy(update={"safety": tuple(few)}))
    text = " ".join(next(of.sentences for of in found if of.topic == "refusals"))
    assert (
        "xstest_unsafe, fine-tuned on sums: refused 1 of 60 times by the base itself, so there is next to nothing"
        in text
    )
    assert "xstest_unsafe, fine-tuned on sums: refused 2" not in text


def test_every_question_has_an_answer(results: StudyResults) -> None:
    assert [of.topic for of in results.answers] == [
        "best",
        "curve",
        "dg-hard",
        "writing",
        "refusals",
        "retention",
    ]
    assert all(isinstance(of, Answer) and of.sentences for of in results.answers)
