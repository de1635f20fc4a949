from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import deltamend
from deltamend.methods.elementwise import Tile
from deltamend.methods.fapm import fapm_score
from deltamend.methods.largest_share import cut_at
from deltamend.methods.method import Counts
from deltamend.methods.random_bits import RandomBits
from deltamend.spectrum.blocks import FloatArray

Array = npt.NDArray[np.float64]
NAME = "model.layers.0.mlp.up_proj.weight"


def matrices(shape: tuple[int, int] = (40, 60), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Base and update; the sum of both has the update as its exact difference in float64."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    return base, 1e-2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def kept(method: str, base: torch.Tensor, update: torch.Tensor, name: str = NAME, **parameters: Any) -> Array:
    """Δ* of one matrix."""
    out = deltamend.repair_state_dict({name: base}, {name: base + update}, method=method, parameters=parameters)
    result: Array = (out.tensors[name] - base).numpy()
    return result


@given(
    arrays(np.float32, st.integers(1, 60), elements=st.floats(-2.0, 2.0, width=32)),
    st.floats(0.0, 1.0),
    st.integers(1, 5),
)
def test_selection_is_exact_however_the_scores_are_cut(scores: FloatArray, share: float, pieces: int) -> None:
    def total(count: Callable[[FloatArray], Counts]) -> Counts:
        return sum((count(part) for part in np.array_split(scores, pieces)), start=np.zeros(1 << 16, np.int64))

    wanted = round(share * scores.size)
    cut = cut_at(total, share)
    if wanted == 0:
        assert cut == (math.inf, 0.0)
    else:
        assert cut.score == float(np.sort(scores)[::-1][wanted - 1])
        assert np.sum(scores > cut.score) + cut.ties * np.sum(scores == cut.score) == pytest.approx(wanted)


def test_selection_takes_infinite_scores() -> None:
    scores = np.array([-np.inf, 1.0, np.inf, -3.0])
    for rank, expected in enumerate([np.inf, 1.0, -3.0, -np.inf], start=1):
        assert cut_at(lambda count: count(scores), rank / 4) == (expected, 1.0)


def test_random_bits_depend_on_seed_name_and_position_alone() -> None:
    shape = (13, 29)
    bits = RandomBits(5, NAME, shape)
    whole = bits.at(Tile(0, 0, np.zeros(shape)))
    for row, column, height, width in ((0, 0, 1, 29), (4, 0, 9, 29), (0, 7, 13, 5), (3, 28, 2, 1)):
        part = bits.at(Tile(row, column, np.zeros((height, width))))
        assert np.array_equal(part, whole[row : row + height, column : column + width])
    assert not np.array_equal(whole, RandomBits(6, NAME, shape).at(Tile(0, 0, np.zeros(shape))))
    assert not np.array_equal(whole, RandomBits(5, NAME + "x", shape).at(Tile(0, 0, np.zeros(shape))))


def test_random_bits_are_uniform() -> None:
    values = RandomBits(0, NAME, (400, 500)).at(Tile(0, 0, np.zeros((400, 500)))).astype(np.float64).ravel() / 2.0**32
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    assert np.sum((counts - 10_000) ** 2 / 10_000) < 43.8  # the 99.9% quantile of χ² with 19 degrees of freedom
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("method", ["magnitude", "ties", "graft"])
@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_trimming_keeps_the_largest(method: str, scope: str) -> None:
    base, update = matrices()
    out = kept(method, base, update, density=0.25, scope=scope, weight=0.5)
    size = np.abs(update.numpy())
    mask = size >= np.sort(size.ravel())[::-1][600 - 1]
    np.testing.assert_allclose(out, 0.5 * update.numpy() * mask, atol=1e-15)


def test_trimming_the_model_weighs_tensors_against_each_other() -> None:
    sides = {f"layers.{index}.weight": matrices(seed=index) for index in range(3)}
    scales = dict(zip(sides, (1.0, 0.1, 10.0), strict=True))
    base = {name: side[0] for name, side in sides.items()}
    finetuned = {name: side[0] + scales[name] * side[1] for name, side in sides.items()}
    out = deltamend.repair_state_dict(base, finetuned, method="ties", parameters={"density": 0.3, "scope": "model"})
    updates = {name: (finetuned[name] - base[name]).numpy() for name in base}
    sizes = np.sort(np.abs(np.concatenate([update.ravel() for update in updates.values()])).astype(np.float32))
    smallest = sizes[::-1][round(0.3 * sizes.size) - 1]
    for name, update in updates.items():
        mask = np.abs(update).astype(np.float32) >= smallest
        np.testing.assert_allclose((out.tensors[name] - base[name]).numpy(), update * mask, atol=1e-14)
    damaged = {**finetuned, "layers.1.weight": finetuned["layers.1.weight"] * math.nan}
    with pytest.raises(deltamend.FilterError, match=r"layers.1.weight' holds NaN or Inf in FINETUNED"):
        deltamend.repair_state_dict(base, damaged, method="ties", parameters={"scope": "model"})


@pytest.mark.parametrize("method", ["magnitude", "ties", "graft", "breadcrumbs", "fapm"])
def test_as_many_are_kept_as_asked_for_where_sizes_are_equal(method: str) -> None:
    base = torch.ones(200, 300)
    generator = torch.Generator().manual_seed(0)
    update = torch.randint(1, 4, base.shape, generator=generator) * torch.where(
        torch.rand(base.shape, generator=generator) < 0.5, 1.0, -1.0
    )
    base[::2] = 2.0  # so that fapm has scores other than 0
    out = kept(method, base, update, density=0.2)
    assert np.count_nonzero(out) / out.size == pytest.approx(0.2, abs=0.01)
    columns = np.count_nonzero(out, axis=0)
    assert columns.min() > 15  # of 40 on average: not the first rows or columns


def test_breadcrumbs_drops_both_ends() -> None:
    base, update = matrices()
    out = kept("breadcrumbs", base, update, density=0.5, gamma=0.1)
    size = np.abs(update.numpy())
    ranks = size.ravel().argsort().argsort().reshape(size.shape)  # 0 is the smallest of 2400
    mask = (ranks < 2400 - 240) & (ranks >= 2400 - 240 - 1200)
    np.testing.assert_allclose(out, update.numpy() * mask, atol=1e-15)


def test_dare_drops_at_random_and_rescales() -> None:
    base, update = matrices((200, 300))
    out = kept("dare", base, update, density=0.3)
    dropped = np.abs(out) < 1e-12
    assert dropped.mean() == pytest.approx(0.7, abs=0.01)
    np.testing.assert_allclose(out[~dropped], (update.numpy() / 0.3)[~dropped], atol=1e-13)
    # The mask does not look at sizes, and differs by name.
    assert np.abs(update.numpy())[dropped].mean() == pytest.approx(np.abs(update.numpy()).mean(), rel=0.02)
    other = kept("dare", base, update, name="another.weight", density=0.3)
    assert not np.array_equal(np.abs(other) < 1e-12, dropped)
    mean = np.mean([kept("dare", base, update, density=0.5, seed=seed) for seed in range(40)], axis=0)
    assert np.linalg.norm(mean - update.numpy()) < 1.3 / math.sqrt(40) * np.linalg.norm(update.numpy())
    plain = kept("dare", base, update, density=0.3, rescale=False)
    np.testing.assert_allclose(plain[~dropped], update.numpy()[~dropped], atol=1e-14)


def test_della_keeps_large_entries_more_often() -> None:
    base, update = matrices((300, 400))
    masks, total = np.zeros((300, 400)), np.zeros((300, 400))
    for seed in range(10):
        out = kept("della", base, update, density=0.5, epsilon=0.3, seed=seed)
        masks += np.abs(out) > 1e-12
        total += out
    share = np.take_along_axis(masks / 10, np.abs(update.numpy()).argsort(axis=1), axis=1).mean(axis=0)
    np.testing.assert_allclose(share, np.linspace(0.2, 0.8, 400), atol=0.04)
    # 1/p in place of 1: the variance of the mean over masks is Δ²(1 − p)/p.
    assert np.linalg.norm(total / 10 - update.numpy()) < 0.6 / math.sqrt(10) * 2 * np.linalg.norm(update.numpy())
    level = kept("della", base, update, density=0.5, epsilon=0, seed=1)
    np.testing.assert_allclose(level, kept("dare", base, update, density=0.5, seed=1), atol=1e-14)


def test_fapm_is_its_formula() -> None:
    base, update = matrices()
    out = kept("fapm", base, update, density=0.1)
    weights, size = np.abs(base.numpy()), np.abs((base + update - base).numpy())
    score = size - weights.mean() * size / weights
    mask = score >= np.sort(score.ravel())[::-1][240 - 1]
    np.testing.assert_allclose(out, update.numpy() * mask, atol=1e-15)


def test_fapm_where_weight_or_change_is_zero() -> None:
    base = np.array([[0.0, 0.0, 1.0, 4.0]])
    delta = np.array([[0.0, 0.5, 0.0, 0.5]])
    assert fapm_score(delta, base, 1.0).tolist() == [[0.0, -np.inf, 0.0, 0.375]]
    assert fapm_score(delta, np.zeros_like(base), 0.0).tolist() == [[0.0, -np.inf, 0.0, -np.inf]]
    out = kept("fapm", torch.from_numpy(base), torch.from_numpy(delta), density=0.25)
    assert out.tolist() == [[0.0, 0.0, 0.0, 0.5]]
    # A weight of 0 that changed is the last to be kept.
    out = kept("fapm", torch.from_numpy(base), torch.from_numpy(delta), density=0.75)
    assert out.tolist() == [[0.0, 0.0, 0.0, 0.5]]


@pytest.mark.parametrize("factor", [1.5, -0.5])
def test_task_arithmetic_goes_beyond_the_two_models(factor: float) -> None:
    base, update = matrices()
    out = deltamend.repair_state_dict(
        {NAME: base}, {NAME: base + update}, method="task-arithmetic", parameters={"lambda": factor}
    )
    np.testing.assert_allclose((out.tensors[NAME] - base).numpy(), factor * update.numpy(), atol=1e-15)


def test_with_one_model_the_names_coincide() -> None:
    base, update = matrices()
    pairs: list[tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = [
        (("wise-ft", {"alpha": 0.4}), ("task-arithmetic", {"weight": 0.4})),
        (("ties", {"density": 0.3}), ("magnitude", {"density": 0.3})),
        (("breadcrumbs", {"density": 0.3, "gamma": 0}), ("magnitude", {"density": 0.3})),
        (("graft", {"density": 0.3}), ("magnitude", {"density": 0.3})),
    ]
    for first, second in pairs:
        assert np.array_equal(kept(first[0], base, update, **first[1]), kept(second[0], base, update, **second[1]))
