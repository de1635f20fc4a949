"""The walk over an update: which matrices there are, in which order they are begun, and both of their sides."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from deltamend.inputs.open_models import open_pair
from deltamend.inputs.pairing import Submatrix
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.update_walk import (
    CheckpointTensors,
    MatrixItem,
    SidesReader,
    costliest_first,
    items_of,
    pair_flops,
    part_of,
)
from deltamend.matrices.views import MemoryMatrix
from tests.matrices.made_up import pair_of_shape, write_checkpoint

QUERY = Submatrix("[q]", ((0, 2),), ((0, 2),))
KEY = Submatrix("[k]", ((4, 6), (2, 3)), ((3, 5), (2, 3)), (1, 3))


def test_items_are_the_matrices_and_parts_that_are_to_be_filtered() -> None:
    pairs = [
        pair_of_shape("norm", (4,), action="keep"),
        pair_of_shape("fused", (6, 4), parts=(QUERY, KEY)),
        pair_of_shape("whole", (6, 4), rows=5),
        pair_of_shape("bias", (9,)),
    ]
    items = items_of(pairs)
    assert [item.name for item in items] == ["fused[q]", "fused[k]", "whole", "bias"]
    assert [item.rows for item in items] == [2, 3, 5, 9]


def test_the_cost_is_that_of_the_parts_and_the_costliest_come_first() -> None:
    whole, fused = pair_of_shape("b", (6, 4)), pair_of_shape("fused", (6, 4), parts=(QUERY, KEY))
    vector = pair_of_shape("vector", (1000,))
    assert pair_flops(whole) == 2 * 6 * 4 * 4
    assert pair_flops(fused) == 2 * 2 * 4 * 2 + 2 * 3 * 2 * 2
    assert pair_flops(vector) == pair_flops(pair_of_shape("kept", (6, 4), action="keep")) == 0.0
    items = items_of([vector, whole, pair_of_shape("a", (6, 4)), pair_of_shape("large", (50, 50))])
    assert [item.name for item in costliest_first(items)] == ["large", "a", "b", "vector"]


def test_both_sides_are_read_and_cut(tmp_path: Path) -> None:
    base, finetuned = np.arange(24.0).reshape(6, 4), np.arange(24.0).reshape(6, 4) ** 2
    folders = (write_checkpoint(tmp_path / "base", w=base), write_checkpoint(tmp_path / "finetuned", w=finetuned))
    with open_pair(*folders, allow_unrelated=True) as pair:
        reader = SidesReader(CheckpointTensors(pair.base), CheckpointTensors(pair.finetuned))
        (tensor,) = pair.pairing.pairs
        found = reader.sides(MatrixItem(tensor))
        np.testing.assert_array_equal(found[0].rows(0, 6), base)
        np.testing.assert_array_equal(found[1].rows(0, 6), finetuned)
        np.testing.assert_array_equal(reader.finetuned(tensor).rows(1, 2), finetuned[1:2])
        part = reader.sides(MatrixItem(tensor, KEY))
        np.testing.assert_array_equal(part[0].rows(0, 3), base[[3, 4, 2], 1:3])
        np.testing.assert_array_equal(part[1].rows(0, 3), finetuned[[4, 5, 2], 1:3])


def test_a_part_is_cut_from_matrices_in_memory() -> None:
    values = np.arange(24.0).reshape(6, 4)
    base, finetuned = part_of((MemoryMatrix(values), MemoryMatrix(-values)), KEY, Buffers())
    np.testing.assert_array_equal(base.rows(0, 3), values[[3, 4, 2], 1:3])
    np.testing.assert_array_equal(finetuned.rows(0, 3), -values[[4, 5, 2], 1:3])


def test_every_thread_has_memory_of_its_own(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", w=np.ones((2, 2)))
    with open_pair(folder, folder) as pair:
        reader = SidesReader(CheckpointTensors(pair.base), CheckpointTensors(pair.finetuned))
        found: list[Buffers] = []
        thread = threading.Thread(target=lambda: found.extend((reader.buffers(), reader.buffers())))
        thread.start()
        thread.join()
        assert found[0] is found[1]
        assert found[0] is not reader.buffers()
