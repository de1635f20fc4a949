"""The merge writes W_base + Δ* once, in blocks of any shape, and measures what it wrote."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import deltamend
from deltamend.errors import FilterError
from deltamend.matrices import buffers as buffers_module
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.delta import DeltaBlocks
from deltamend.matrices.views import MemoryMatrix
from deltamend.methods.method import KeptDelta
from deltamend.repairing.merge import copy_rows, refuse_damaged, write_merged
from deltamend.repairing.sinks import Norms
from tests.matrices.made_up import write_checkpoint
from tests.repairing.array_sink import ArraySink

BF16 = np.dtype(ml_dtypes.bfloat16)
HALF = KeptDelta("filtered", "", lambda block: 0.5 * block.values)
KEPT = {"filtered": (HALF, 0.5), "identity": (KeptDelta.identity(""), 1.0), "reverted": (KeptDelta.reverted(""), 0.0)}
SHAPES = [(50, 12), (12, 50), (20, 20)]


def made(shape: tuple[int, int], dtype: object = np.float32) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(0)
    base = drawn.standard_normal(shape).astype(np.float32)
    return base.astype(dtype), (base + 0.1 * drawn.standard_normal(shape).astype(np.float32)).astype(dtype)  # type: ignore[call-overload]


def merged(
    sides: tuple[np.ndarray, np.ndarray], kept: KeptDelta, dtype: object = np.float32, block_elements: int | None = None
) -> tuple[np.ndarray, Norms]:
    buffers, matrices = Buffers(), (MemoryMatrix(sides[0]), MemoryMatrix(sides[1]))
    sink = ArraySink(matrices[0].shape, dtype)
    delta = DeltaBlocks(*matrices, matrices[0].shape[0], buffers, block_elements=block_elements)
    return sink.array, write_merged(delta, kept, matrices, sink, "w", buffers)


@pytest.mark.parametrize("outcome", KEPT)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_elements", [None, 70])
def test_the_sum_and_its_norms_are_those_of_float64(
    outcome: str, shape: tuple[int, int], block_elements: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers_module, "CHUNK_ELEMENTS", 60)
    base, finetuned = made(shape)
    kept, factor = KEPT[outcome]
    written, norms = merged((base, finetuned), kept, block_elements=block_elements)
    delta = finetuned.astype(np.float64) - base
    np.testing.assert_allclose(written, base + factor * delta, rtol=1e-6, atol=1e-7)
    if outcome != "filtered":
        np.testing.assert_array_equal(written, {"identity": finetuned, "reverted": base}[outcome])  # bit for bit
    whole = float(np.sum(delta**2))
    assert norms.delta == pytest.approx(whole, rel=1e-5)
    assert norms.kept == pytest.approx(factor**2 * whole, rel=1e-5)
    assert norms.removed == pytest.approx((1 - factor) ** 2 * whole, rel=1e-5, abs=1e-9)
    assert norms.realised == pytest.approx(factor**2 * whole, rel=1e-5)
    assert norms.lost == pytest.approx(0.0, abs=1e-10)
    assert norms.unmoved == (base.size if factor == 0.0 else 0)


def test_what_rounding_to_bf16_loses_is_measured() -> None:
    sides = made((50, 12), BF16)
    written, norms = merged(sides, HALF, BF16)
    base, finetuned = (side.astype(np.float64) for side in sides)
    exact = base + 0.5 * (finetuned - base)
    np.testing.assert_array_equal(written, exact.astype(np.float32).astype(BF16))
    realised = written.astype(np.float64) - base
    assert norms.realised == pytest.approx(float(np.sum(realised**2)), rel=1e-5)
    assert norms.lost == pytest.approx(float(np.sum((written.astype(np.float64) - exact) ** 2)), rel=1e-4)
    assert norms.lost > 0
    assert norms.unmoved == int(np.sum(realised == 0))


@pytest.mark.parametrize(("side", "name"), [(0, "BASE"), (1, "FINETUNED")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_damage_is_named_with_its_side(side: int, name: str, value: float) -> None:
    sides = made((6, 5))
    sides[side][4, 2] = value
    with pytest.raises(FilterError, match=f"^tensor 'w' holds NaN or Inf in {name}; give an undamaged checkpoint$"):
        merged(sides, HALF)
    with pytest.raises(FilterError, match=name):
        refuse_damaged((MemoryMatrix(sides[0]), MemoryMatrix(sides[1])), "w")
    refuse_damaged((MemoryMatrix(made((6, 5))[0]), MemoryMatrix(made((6, 5))[1])), "w")


def test_a_difference_that_overflows_is_refused() -> None:
    largest = np.full((3, 4), np.finfo(np.float32).max)
    with pytest.raises(FilterError, match="the difference of base and fine-tuned overflows"):
        merged((-largest, largest), HALF)


def test_a_sum_that_overflows_is_refused_with_the_remedy() -> None:
    base = np.zeros((3, 4), np.float32)
    with pytest.raises(FilterError, match=r'^tensor \'w\' overflows in float16; write it with out_dtype="fp32"$'):
        merged((base, base + 1e6), KeptDelta.identity(""), np.float16)


def test_rows_are_copied_bit_for_bit_or_cast() -> None:
    values = made((6, 5))[0]
    same, narrow = ArraySink((6, 5)), ArraySink((6, 5), BF16)
    copy_rows(MemoryMatrix(values), (2, 6), same, "w", Buffers())
    copy_rows(MemoryMatrix(values), (2, 6), narrow, "w", Buffers())
    np.testing.assert_array_equal(same.array[2:], values[2:])
    assert np.isnan(same.array[:2]).all()
    np.testing.assert_array_equal(narrow.array[2:], values[2:].astype(BF16))
    copy_rows(MemoryMatrix(values), (6, 6), same, "w", Buffers())  # nothing


def test_rows_that_cannot_be_copied_are_refused() -> None:
    damaged = np.array([[1.0, np.nan]], np.float32)
    with pytest.raises(FilterError, match="tensor 'w' holds NaN or Inf in FINETUNED"):
        copy_rows(MemoryMatrix(damaged), (0, 1), ArraySink((1, 2)), "w", Buffers())
    with pytest.raises(FilterError, match="tensor 'w' overflows in float16"):
        copy_rows(MemoryMatrix(np.full((1, 2), 1e6, np.float32)), (0, 1), ArraySink((1, 2), np.float16), "w", Buffers())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_overflow_of_the_difference_leaves_nothing_behind(tmp_path: Path, dtype: type) -> None:
    largest: np.ndarray = np.full((3, 4), np.finfo(dtype).max, dtype)
    base, finetuned = (
        write_checkpoint(tmp_path / "base", a=-largest),
        write_checkpoint(tmp_path / "finetuned", a=largest),
    )
    for method in ("wise-ft", "dg-hard"):
        with pytest.raises(deltamend.FilterError, match="tensor 'a'"):
            deltamend.repair(base, finetuned, tmp_path / "out", method=method)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "finetuned"}


def test_a_cast_of_equal_weights_is_measured(tmp_path: Path) -> None:
    weights = torch.linspace(-1, 1, 300).view(15, 20)
    base = write_checkpoint(tmp_path / "base", a=weights.numpy())
    finetuned = write_checkpoint(tmp_path / "finetuned", a=weights.numpy())
    (record,) = deltamend.repair(base, finetuned, tmp_path / "out", out_dtype="bf16").tensors
    lost = weights.bfloat16().float() - weights
    assert record.realised_norm == pytest.approx(float(lost.norm()), rel=1e-5)
    assert record.unmoved == pytest.approx(float((lost == 0).float().mean()))
