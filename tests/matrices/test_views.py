"""Every view gives the rows and columns that numpy gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.inputs.open_models import open_checkpoint
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.views import Matrix, MemoryMatrix, StoredMatrix, SubMatrix
from tests.matrices.made_up import write_checkpoint

VALUES = np.arange(42, dtype=np.float32).reshape(6, 7)
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Checkpoint]:
    folder = write_checkpoint(
        tmp_path / "model",
        **{
            "matrix": VALUES,
            "vector": VALUES[0],
            "conv.weight": VALUES.reshape(3, 7, 2),
            EXPERTS: VALUES.reshape(2, 3, 7),
        },
    )
    with open_checkpoint(folder) as opened:
        yield opened


def stored(checkpoint: Checkpoint, name: str) -> StoredMatrix:
    return StoredMatrix(checkpoint, checkpoint.tensors[name], Buffers(), "test")


def assert_reads(matrix: Matrix, expected: np.ndarray) -> None:
    rows, columns = matrix.shape
    assert (rows, columns) == expected.shape
    assert matrix.dtype == expected.dtype
    for start, stop in ((0, rows), (1, min(rows, 3)), (rows - 1, rows)):
        found = matrix.rows(start, stop)
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected[start:stop])
    for start, stop in ((0, columns), (columns - 1, columns)):
        found = matrix.columns(start, stop)
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected[:, start:stop])
        np.testing.assert_array_equal(matrix.columns(start, stop, (1, rows)), expected[1:rows, start:stop])


def test_a_stored_matrix_is_read_in_parts(checkpoint: Checkpoint) -> None:
    assert_reads(stored(checkpoint, "matrix"), VALUES)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("vector", (7, 1)), ("conv.weight", (3, 14)), (EXPERTS, (6, 7))],
    ids=["vector", "kernel", "experts"],
)
def test_other_tensors_are_read_as_matrices(checkpoint: Checkpoint, name: str, shape: tuple[int, int]) -> None:
    assert StoredMatrix.view_shape(checkpoint.tensors[name]) == shape
    assert_reads(stored(checkpoint, name), VALUES.reshape(-1)[: shape[0] * shape[1]].reshape(shape))


@pytest.mark.parametrize("shape", [(6, 7), (42,), (2, 3, 7)])
def test_an_array_in_memory_is_a_matrix_or_one_column(shape: tuple[int, ...]) -> None:
    array = VALUES.reshape(shape)
    assert_reads(MemoryMatrix(array), array if len(shape) == 2 else array.reshape(-1, 1))


@pytest.mark.parametrize("columns", [None, (2, 5)])
@pytest.mark.parametrize("spans", [((0, 6),), ((4, 6), (0, 1)), ((1, 2), (2, 3), (5, 6))])
def test_a_submatrix_gathers_spans_of_rows(
    spans: tuple[tuple[int, int], ...], columns: tuple[int, int] | None, checkpoint: Checkpoint
) -> None:
    chosen = np.concatenate([VALUES[start:stop] for start, stop in spans])
    expected = chosen if columns is None else chosen[:, columns[0] : columns[1]]
    for matrix in (MemoryMatrix(VALUES), stored(checkpoint, "matrix")):
        assert_reads(SubMatrix(matrix, spans, columns, Buffers(), "part"), expected)


def test_two_uses_do_not_share_a_buffer(checkpoint: Checkpoint) -> None:
    buffers, tensor = Buffers(), checkpoint.tensors["matrix"]
    first = StoredMatrix(checkpoint, tensor, buffers, "base").rows(0, 1)
    StoredMatrix(checkpoint, tensor, buffers, "finetuned").rows(5, 6)
    np.testing.assert_array_equal(first, VALUES[:1])
