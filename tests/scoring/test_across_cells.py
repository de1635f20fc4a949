from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from deltamend.errors import UsageError
from deltamend.evaluation.record import write_evaluation
from deltamend.scoring.across_cells import (
    CellsScore,
    MeanDifference,
    cluster_means,
    mean_over_cells,
    score_across_cells,
)
from deltamend.scoring.cells_file import open_cells
from deltamend.scoring.metric import FloatArray
from deltamend.scoring.paired_cell import open_cell
from deltamend.scoring.result import Estimate
from deltamend.scoring.run import score_many
from deltamend.scoring.settings import Settings
from tests.scoring.records import MODELS, made_up_cell


def write_cells(folder: Path, clusters: list[str]) -> Path:
    lines = ["cells:"]
    for seed, cluster in enumerate(clusters):
        for model, record in made_up_cell(150, seed).items():
            write_evaluation(record, folder / f"{model}-{seed}.json.gz")
        files = {model: f"{model}-{seed}.json.gz" for model in MODELS}
        lines += [
            f"  - name: cell {seed}",
            f"    cluster: {cluster}",
            f"    base: {files['base']}",
            f"    finetuned: {files['finetuned']}",
            f"    repaired: {{good: {files['good']}, poor: {files['poor']}}}",
            "    target: sums",
        ]
    path = folder / "cells.yaml"
    path.write_text("\n".join(lines))
    return path


def scored(path: Path) -> CellsScore:
    return score_across_cells(*open_cells(path), Settings(draws=300))


def test_seeds_of_one_cell_are_one_pair_for_the_test(tmp_path: Path) -> None:
    found = scored(write_cells(tmp_path, ["llama", "llama", "qwen", "gemma"]))
    (test,) = found.tests
    assert (test.clusters, found.methods["good"].cells, found.methods["good"].clusters) == (3, 4, 3)
    assert test.p == test.p_holm == test.smallest_p == 0.25
    assert "3 clusters of cells cannot give a p below 0.25" in found.notes[-1]


def test_the_mean_is_over_clusters_and_its_interval_over_cells_is_the_wider_one(tmp_path: Path) -> None:
    found = scored(write_cells(tmp_path, ["llama", "llama", "qwen"]))
    combined = np.array([cell.methods["poor"].combined.value for cell in found.cells], dtype=float)
    poor = found.methods["poor"]
    assert poor.these_cells.value == pytest.approx((combined[:2].mean() + combined[2]) / 2)
    # Not strictly: in some draws a cell's score is undefined, and the mean is over the others.
    widths = [(of.high or 0) - (of.low or 0) for of in (poor.cells_like_these, poor.these_cells)]
    assert widths[0] > 0.9 * widths[1]


def test_one_cluster_says_nothing_of_other_cells(tmp_path: Path) -> None:
    found = scored(write_cells(tmp_path, ["llama", "llama"]))
    assert found.methods["good"].cells_like_these.low is None
    assert found.methods["good"].these_cells.low is not None


def compared(methods: dict[str, str], cells: int = 4) -> MeanDifference:
    """The difference of two methods, each one of the made-up models, over cells that are clusters of their own."""
    opened = []
    for seed in range(cells):
        records = made_up_cell(150, seed)
        repaired = {name: records[model] for name, model in methods.items()}
        opened.append(open_cell(records["base"], records["finetuned"], repaired, target="sums", name=f"cell {seed}"))
    (pair,) = score_across_cells(opened, [cell.name for cell in opened], Settings(draws=300)).differences
    return pair


def width(of: Estimate) -> float:
    assert of.low is not None
    assert of.high is not None
    return of.high - of.low


@pytest.mark.slow
def test_methods_that_do_the_same_differ_by_exactly_nothing() -> None:
    pair = compared({"one": "good", "other": "good"})
    for of in (pair.these_cells, pair.cells_like_these):
        assert (of.value, of.low, of.high) == (0.0, 0.0, 0.0)


@pytest.mark.slow
def test_a_better_method_stands_above_and_the_sign_follows_the_order() -> None:
    up, down = compared({"one": "good", "other": "poor"}), compared({"one": "poor", "other": "good"})
    assert up.cells_like_these.low is not None
    assert up.cells_like_these.low > 0
    assert up.these_cells.value == pytest.approx(-(down.these_cells.value or 0))
    assert up.these_cells.low == pytest.approx(-(down.these_cells.high or 0))


def strongly_correlated(draws: int = 400, cells: int = 6) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Scores of two methods that share most of what happens in a cell: values (cells,) and draws (D, cells) of each."""
    random = np.random.default_rng(3)
    level = random.uniform(20, 80, cells)
    shared = level + random.normal(0, 8, (draws, cells))
    first, second = shared + 2 + random.normal(0, 0.5, (draws, cells)), shared + random.normal(0, 0.5, (draws, cells))
    return level + 2, level, first, second


def test_a_paired_interval_is_narrower_than_what_two_intervals_allow() -> None:
    names = list("abcdef")
    first, second, first_drawn, second_drawn = strongly_correlated()
    settings = Settings(draws=400)
    paired = mean_over_cells(first - second, first_drawn - second_drawn, names, settings)
    alone = [
        mean_over_cells(first, first_drawn, names, settings),
        mean_over_cells(second, second_drawn, names, settings),
    ]
    assert width(paired.these_cells) < 0.2 * min(width(of.these_cells) for of in alone)
    assert width(paired.cells_like_these) < 0.2 * min(width(of.cells_like_these) for of in alone)
    assert (paired.cells_like_these.low or 0) > 0  # though the two intervals overlap nearly everywhere
    assert (alone[0].cells_like_these.low or 0) < (alone[1].cells_like_these.high or 0)


def test_a_paired_interval_is_what_a_plain_loop_over_draws_gives() -> None:
    names = ["a", "a", "b", "c", "c", "c"]
    first, second, first_drawn, second_drawn = strongly_correlated(draws=200)
    found = mean_over_cells(first - second, first_drawn - second_drawn, names, Settings(draws=200, seed=5))
    members = {name: [place for place, other in enumerate(names) if other == name] for name in "abc"}

    def mean_over(clusters: list[str], scores: FloatArray) -> float:
        return float(np.mean([np.mean([scores[cell] for cell in members[name]]) for name in clusters]))

    random = np.random.default_rng([5, *hashlib.sha256(b"clusters").digest()])
    fixed, redrawn = [], []
    for draw, taken in enumerate(random.integers(3, size=(200, 3))):
        fixed.append(mean_over(list("abc"), first_drawn[draw]) - mean_over(list("abc"), second_drawn[draw]))
        clusters = ["abc"[place] for place in taken]
        redrawn.append(mean_over(clusters, first_drawn[draw]) - mean_over(clusters, second_drawn[draw]))
    for of, drawn in ((found.these_cells, fixed), (found.cells_like_these, redrawn)):
        assert of.value == pytest.approx(mean_over(list("abc"), first - second))
        assert (of.low, of.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert (found.cells, found.clusters) == (6, 3)


def test_a_difference_is_over_the_cells_that_have_both_methods() -> None:
    first, second, first_drawn, second_drawn = strongly_correlated()
    first[0], first_drawn[:, 0] = np.nan, np.nan
    found = mean_over_cells(first - second, first_drawn - second_drawn, list("abcdef"), Settings(draws=400))
    assert (found.cells, found.clusters, found.these_cells.undefined_draws) == (5, 5, 0)


def test_draws_in_which_a_cell_is_undefined_are_counted() -> None:
    first, _, drawn, _ = strongly_correlated()
    drawn[:40, 2] = np.nan
    found = mean_over_cells(first, drawn, list("abcdef"), Settings(draws=400))
    for of in (found.these_cells, found.cells_like_these):
        assert of.undefined_draws == pytest.approx(40 / drawn.size)


def test_cells_that_are_undefined_are_left_out_of_a_mean() -> None:
    assert cluster_means(np.array([1.0, np.nan, 5.0]), ["a", "a", "b"]) == {"a": 1.0, "b": 5.0}


@pytest.mark.slow
def test_a_file_of_cells_is_scored_from_python_with_the_options_of_one_cell(tmp_path: Path) -> None:
    path = write_cells(tmp_path, ["llama", "llama", "qwen"])
    found = score_many(path, draws=300, margin=0.02, task_margins={"sums": "2se"}, seed=1, confidence=0.9)
    assert [(cell.draws, cell.seed, cell.confidence) for cell in found.cells] == [(300, 1, 0.9)] * 3
    assert {cell.margin for cell in found.cells} == {"0.02; sums 2se"}
    assert found.clusters == ("llama", "llama", "qwen")
    with pytest.raises(UsageError, match="draws: 10 is out of range"):
        score_many(path, draws=10)
