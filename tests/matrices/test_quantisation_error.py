"""The noise that the quantisation of two matrices adds to their difference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.inputs.open_models import open_checkpoint
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.quantisation_error import quantisation_variance
from deltamend.matrices.views import MemoryMatrix, StoredMatrix, SubMatrix
from tests.conftest import llama
from tests.inputs.quantised_formats.writers import FORMATS, write_quantised
from tests.reference import load

NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Checkpoint]:
    llama(torch.float32).save_pretrained(tmp_path / "model")
    write_quantised(tmp_path / "model", FORMATS["gptq"])
    with open_checkpoint(tmp_path / "model") as opened:
        yield opened


def stored(checkpoint: Checkpoint, use: str) -> StoredMatrix:
    return StoredMatrix(checkpoint, checkpoint.tensors[NAME], Buffers(), use)


def test_it_is_the_sum_of_both_sides_and_0_of_a_side_that_is_not_quantised(checkpoint: Checkpoint) -> None:
    packed, plain = stored(checkpoint, "packed"), MemoryMatrix(np.zeros((64, 160), np.float32))
    one = quantisation_variance((packed, plain), 64)
    assert one > 0
    assert quantisation_variance((plain, packed), 64) == one
    assert quantisation_variance((packed, packed), 64) == pytest.approx(2 * one)
    assert quantisation_variance((plain, plain), 64) == 0.0


def test_it_is_near_the_rounding_that_was_done(checkpoint: Checkpoint, tmp_path: Path) -> None:
    llama(torch.float32).save_pretrained(tmp_path / "before")
    before = load(tmp_path / "before")[NAME].numpy()
    packed = stored(checkpoint, "packed")
    done = float(np.mean((packed.rows(0, 64) - before) ** 2))
    assert quantisation_variance((packed, MemoryMatrix(before)), 64) == pytest.approx(done, rel=0.05)


def test_a_part_has_the_errors_of_its_own_entries(checkpoint: Checkpoint) -> None:
    matrix = stored(checkpoint, "whole")
    part = SubMatrix(matrix, ((3, 9), (20, 30)), (40, 120), Buffers(), "part")
    whole = matrix.squared_errors(0, 64)
    found = part.squared_errors(2, 12)
    assert whole is not None
    assert found is not None
    rows = [*range(3, 9), *range(20, 30)][2:12]
    assert np.array_equal(found, whole[rows, 40:120])
    assert SubMatrix(MemoryMatrix(whole), ((0, 3),), None, Buffers(), "plain").squared_errors(0, 2) is None


def test_columns_of_a_computed_matrix_are_those_of_its_rows(checkpoint: Checkpoint) -> None:
    matrix = stored(checkpoint, "columns")
    rows = stored(checkpoint, "rows").rows(0, 64).copy()
    assert np.array_equal(matrix.columns(5, 90), rows[:, 5:90])
    assert np.array_equal(matrix.columns(31, 32, (7, 50)), rows[7:50, 31:32])
