from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltamend.errors import FilterError
from deltamend.inputs.open_models import OpenPair, open_pair
from deltamend.matrices.update_walk import CheckpointTensors, MatrixItem, SidesReader, items_of
from deltamend.methods.method import TensorContext
from deltamend.methods.registry import get_method
from deltamend.repairing.survey import Survey
from deltamend.repairing.tensor_parts import job_for
from deltamend.spectrum.blocks import Blocks
from tests.matrices.made_up import write_checkpoint


def survey(pair: OpenPair, run: Callable[[Callable[[MatrixItem], None], Iterable[MatrixItem]], object]) -> Survey:
    reader = SidesReader(CheckpointTensors(pair.base), CheckpointTensors(pair.finetuned))
    method = get_method("dg-hard")
    return Survey(items_of(pair.pairing.pairs), reader, lambda item: job_for(item, method, "cpu"), run)


def one_after_another(function: Callable[[MatrixItem], None], items: Iterable[MatrixItem]) -> None:
    for item in items:
        function(item)


def backwards(function: Callable[[MatrixItem], None], items: Iterable[MatrixItem]) -> None:
    one_after_another(function, reversed(list(items)))


def entries_and_changes(delta: Blocks, _: TensorContext) -> np.ndarray:
    changed = sum(int(np.count_nonzero(block.values)) for block in delta)
    return np.array([delta.shape[0] * delta.shape[1], changed])


@pytest.mark.parametrize("run", [one_after_another, backwards])
def test_the_total_is_over_all_matrices_in_any_order(tmp_path: Path, run: Any) -> None:
    before = {"a": np.zeros((4, 5)), "b": np.zeros((3, 2)), "bias": np.zeros(7)}
    after = {"a": np.eye(4, 5), "b": np.ones((3, 2)), "bias": np.ones(7)}
    folders = write_checkpoint(tmp_path / "base", **before), write_checkpoint(tmp_path / "finetuned", **after)
    with open_pair(*folders) as pair:
        assert survey(pair, run).total(entries_and_changes).tolist() == [26, 10]


def test_a_failure_names_the_damaged_side(tmp_path: Path) -> None:
    folders = (
        write_checkpoint(tmp_path / "base", a=np.full((2, 3), np.nan)),
        write_checkpoint(tmp_path / "finetuned", a=np.ones((2, 3))),
    )

    def fail(*_: object) -> np.ndarray:
        raise FilterError("something is not finite")

    with open_pair(*folders) as pair, pytest.raises(FilterError, match="tensor 'a' holds NaN or Inf in BASE"):
        survey(pair, one_after_another).total(fail)


def test_a_failure_of_the_method_itself_is_raised_as_it_is(tmp_path: Path) -> None:
    folders = (
        write_checkpoint(tmp_path / "base", a=np.zeros((2, 3))),
        write_checkpoint(tmp_path / "finetuned", a=np.ones((2, 3))),
    )

    def fail(*_: object) -> np.ndarray:
        raise FilterError("no rank is left")

    with open_pair(*folders) as pair, pytest.raises(FilterError, match=r"^no rank is left$"):
        survey(pair, one_after_another).total(fail)
