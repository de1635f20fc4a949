from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltamend.errors import UsageError
from deltamend.evaluation.record import write_evaluation
from deltamend.score.cells import CellsScore, cluster_means, open_cells, score_over_cells
from deltamend.score.scoring import Settings
from tests.score.records import MODELS, made_up_cell


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


def over_cells(path: Path) -> CellsScore:
    return score_over_cells(*open_cells(path), Settings(draws=300))


def test_seeds_of_one_cell_are_one_pair_for_the_test(tmp_path: Path) -> None:
    found = over_cells(write_cells(tmp_path, ["llama", "llama", "qwen", "gemma"]))
    (test,) = found.tests
    assert (test.clusters, found.methods["good"].cells, found.methods["good"].clusters) == (3, 4, 3)
    assert test.p == test.p_holm == test.smallest_p == 0.25
    assert "3 clusters of cells cannot give a p below 0.25" in found.notes[-1]


def test_the_mean_is_over_clusters_and_its_interval_over_cells_is_the_wider_one(tmp_path: Path) -> None:
    found = over_cells(write_cells(tmp_path, ["llama", "llama", "qwen"]))
    combined = np.array([cell.methods["poor"].combined.value for cell in found.cells], dtype=float)
    poor = found.methods["poor"]
    assert poor.these_cells.value == pytest.approx((combined[:2].mean() + combined[2]) / 2)
    # Not strictly: in some draws a cell's score is undefined, and the mean is over the others.
    widths = [(of.high or 0) - (of.low or 0) for of in (poor.cells_like_these, poor.these_cells)]
    assert widths[0] > 0.9 * widths[1]


def test_one_cluster_says_nothing_of_other_cells(tmp_path: Path) -> None:
    found = over_cells(write_cells(tmp_path, ["llama", "llama"]))
    assert found.methods["good"].cells_like_these.low is None
    assert found.methods["good"].these_cells.low is not None


def test_cells_that_are_undefined_are_left_out_of_a_mean() -> None:
    assert cluster_means(np.array([1.0, np.nan, 5.0]), ["a", "a", "b"]) == {"a": 1.0, "b": 5.0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cells: []", "cells: List should have at least 1"),
        ("cells: [{name: a}]", r"cells\.0\.base: Field required"),
        ("cells: [", "is not YAML"),
        ("cell: 1", "cells: Field required"),
    ],
)
def test_a_list_that_is_wrong_is_refused_by_field(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "cells.yaml").write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        open_cells(tmp_path / "cells.yaml")
    assert "\n" not in str(caught.value)


def test_two_cells_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_cells(tmp_path, ["llama", "llama"])
    path.write_text(path.read_text().replace("cell 1", "cell 0"))
    with pytest.raises(UsageError, match="two cells are named 'cell 0'"):
        open_cells(path)
