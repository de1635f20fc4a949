"""What is told of a lead, line by line, and whether README's records are what is told today."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.study import lead as script
from deltamend.scoring.across_cells import MeanOverCells
from deltamend.scoring.result import Estimate
from deltamend.study.config import read_study
from deltamend.study.findings.lead import ScoredStudy, confirmation_cells, in_regime, lead_over, mean_score, score_study
from deltamend.study.findings.lead_text import LeadQuestion, lead_lines, mean_in_words
from tests.study.made_up import made_up_study, write_made_up

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
RECORDS = ROOT / "benchmarks" / "results" / "study"
QUESTION = LeadQuestion(
    ours="ours",
    curve="wise-ft-0.5",
    paper="dg-hard",
    others=("hopeless", "not-in-this-study"),
    alphas=("wise-ft-0.35", "wise-ft-0.5", "wise-ft-0.8"),
    alpha_too="wise-ft-0.65",
    published=("ties", "dare"),
    later="hopeless",
    later_over=("ties",),
    seen=frozenset({("quiz", "fp32", 0), ("quiz", "bf16", 0)}),
    seen_when="ours was picked",
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> ScoredStudy:
    out = tmp_path_factory.mktemp("study")
    write_made_up(made_up_study(), out)
    return score_study(made_up_study(), out, 100)


def headings(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("  ")]


def test_a_mean_is_told_with_both_intervals() -> None:
    found = MeanOverCells(
        cells=6,
        clusters=4,
        these_cells=Estimate(value=12.44, low=4.38, high=20.51),
        cells_like_these=Estimate(value=12.44, reason="one cluster"),
    )
    assert mean_in_words(found) == "12.4 in 6 cells, [4.4, 20.5], for cells like these no interval"
    nothing = Estimate(value=None, reason="undefined in every cell")
    assert (
        mean_in_words(found.model_copy(update={"these_cells": nothing, "cells_like_these": nothing}))
        == "no mean, undefined in every cell"
    )


def test_one_study_is_told_from_all_cells_to_what_the_lead_hangs_on(scored: ScoredStudy) -> None:
    lines = list(lead_lines(QUESTION, scored))
    assert headings(lines)[:6] == [
        "all 6 confirmation cells of 4 clusters, in float32",
        "in the dtype of the fine-tuned model, as `deltamend repair` writes it unless it is told",
        "the same in fp32",
        "the same in bf16",
        "the lead over wise-ft-0.5 in float32, by target",
        "WiSE-FT at the alpha that was best in the choosing cells of a regime (0.5 in fp32, 0.5 in bf16), in float32",
    ]
    assert [line.partition(":")[0] for line in lines[1:5]] == [
        "  ours",
        "  wise-ft-0.5",
        "  ours − wise-ft-0.5",
        "  ours − hopeless",  # the other one is not in this study
    ]
    place = lines.index("the same in bf16")
    bf16 = in_regime(confirmation_cells(scored), "bf16")
    told = mean_in_words(lead_over([bf16], "ours", "dg-hard", "stored"))
    assert lines[place + 5] == f"  ours − dg-hard: {told}"
    assert told != mean_in_words(lead_over([bf16], "ours", "dg-hard"))


def test_the_largest_cluster_is_named_and_left_out(scored: ScoredStudy) -> None:
    lines = list(lead_lines(QUESTION, scored))
    (place,) = (place for place, line in enumerate(lines) if line.startswith("without tiny/"))
    assert lines[place].endswith("it is ahead in 4 of 4 clusters")
    left_out = lines[place].split()[1].rstrip(",")
    rest = confirmation_cells(scored).where(lambda of: of.cell.cluster != left_out)
    assert lines[place + 1] == f"  ours − wise-ft-0.5: {mean_in_words(lead_over([rest], 'ours', 'wise-ft-0.5'))}"


def on_gpu(scored: ScoredStudy, seeds: set[int]) -> ScoredStudy:
    """The same, but that cells of some seeds ran on a GPU."""
    moved = [
        replace(of, record=of.record.model_copy(update={"machine": "NVIDIA H200"})) if of.cell.seed in seeds else of
        for of in scored.cells
    ]
    return replace(scored, cells=tuple(moved))


def test_cells_that_ran_later_are_told_apart_if_some_had_been_seen(scored: ScoredStudy) -> None:
    lines = list(lead_lines(QUESTION, scored))
    heading = (
        "4 confirmation cells of 4 clusters, all of them seen with other seeds, ran after ours was picked; in float32"
    )
    later = confirmation_cells(scored).where(lambda of: of.cell.seed == 1)
    assert lines[lines.index(heading) + 1] == f"  ours: {mean_in_words(mean_score([later], 'ours'))}"
    none_seen = list(lead_lines(replace(QUESTION, seen=frozenset()), scored))
    assert none_seen == lines[: lines.index(heading)]


def test_cells_of_a_new_regime_are_not_told_to_have_been_seen(scored: ScoredStudy) -> None:
    # Of sums the choosing cells had been seen; of quiz in bf16 nothing.
    lines = list(lead_lines(replace(QUESTION, seen=frozenset({("quiz", "fp32", 0)})), scored))
    assert (
        sum(line.startswith("5 confirmation cells of 4 clusters, 3 of them seen with other seeds") for line in lines)
        == 1
    )


def test_cells_that_ran_on_a_gpu_are_left_out_once(scored: ScoredStudy) -> None:
    told = "the same in float32, without the {} cells that ran on a GPU, {}"
    question = replace(QUESTION, seen=frozenset({("quiz", "fp32", 0)}))
    lines = list(lead_lines(question, on_gpu(scored, {1})))
    assert lines[-2] == told.format(4, "all of seed 1")
    (left,) = confirmation_cells(scored).where(lambda of: of.cell.seed == 0 and of.cell.regime.name == "bf16").rows
    assert scored.cells[left].cell.name == "tiny/quiz/bf16/0"
    assert "in 1 cells" in lines[-1]
    assert list(lead_lines(question, on_gpu(scored, {0, 1})))[-2] == told.format(5, "of seeds 0, 1")
    assert not any("GPU" in line for line in lead_lines(question, scored))


def test_two_studies_are_told_together_after_the_one(scored: ScoredStudy) -> None:
    alone, both = list(lead_lines(QUESTION, scored)), list(lead_lines(QUESTION, scored, scored))
    assert both[: len(alone)] == alone
    assert headings(both[len(alone) :]) == [
        "all 12 confirmation cells of both studies, of 4 clusters, in float32",
        "hopeless, over the cells that had not been seen when it was picked, in float32",
        "the same over the 8 cells of which no other seed had been seen either",
        "the same in the dtype of the fine-tuned model",
        "in both studies in fp32, in the dtype of the fine-tuned model",
        "in both studies in bf16, in the dtype of the fine-tuned model",
        "dg-hard written in bf16 minus written in float32, models trained in bf16",
    ]
    assert f"  ours − ties: {mean_in_words(lead_over([confirmation_cells(scored)] * 2, 'ours', 'ties'))}" in both


def test_without_choosing_cells_the_alphas_are_those_of_the_earlier_study(scored: ScoredStudy) -> None:
    new = replace(scored, choosing=())
    alone, both = list(lead_lines(QUESTION, new)), list(lead_lines(QUESTION, new, scored))
    assert sum(line.endswith("not every regime has choosing cells") for line in alone) == 1
    assert sum("(0.5 in fp32, 0.5 in bf16)" in line for line in both) == 1


def test_the_records_that_readme_rests_on_are_what_is_told_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_intervals(text: str) -> list[str]:
        return [re.sub(r", \[.*", "", line) for line in text.splitlines()]

    monkeypatch.chdir(ROOT)
    record = tmp_path / "lead.txt"
    for words, file in (
        ("studies/smollm2.yaml docs/results/smollm2", "lead.txt"),
        ("studies/fresh.yaml docs/results/fresh --with studies/smollm2.yaml docs/results/smollm2", "lead_fresh.txt"),
    ):
        # Means do not depend on the number of resamples; 10,000, as recorded, would take four times as long.
        monkeypatch.setattr(sys, "argv", ["lead", *words.split(), "--draws", "100", "--record", str(record)])
        script.main()
        told = record.read_text(encoding="utf-8")
        assert capsys.readouterr().out == told
        assert without_intervals(told) == without_intervals((RECORDS / file).read_text(encoding="utf-8"))


def test_the_question_of_readme_names_repairs_of_both_studies() -> None:
    question = script.QUESTION
    for file in ("smollm2", "fresh"):
        names = {repair.name for repair in read_study(ROOT / "studies" / f"{file}.yaml").repairs}
        asked = {question.ours, question.curve, question.paper, question.alpha_too, question.later}
        assert asked | set(question.published) | set(question.later_over) <= names
