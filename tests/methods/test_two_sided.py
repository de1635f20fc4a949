"""The update weighed in two metrics: it minimises what it says, and its limits are the methods that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import deltamend
from deltamend.calibration.activations import described
from deltamend.methods.input_moments import inputs_of
from deltamend.methods.method import TensorContext
from deltamend.methods.registry import get_method
from deltamend.spectrum.blocks import ArrayBlocks
from tests.methods.test_null_space import NAME, moments_of

Metric = np.ndarray[Any, np.dtype[np.float64]]


class Never:
    """A base that the method does not read."""

    shape = (5, 12)

    def read(self, start: int, stop: int) -> Metric:
        raise AssertionError(f"rows {start} to {stop} were read")


SHAPES = pytest.mark.parametrize("shape", [(40, 12), (12, 12), (5, 12)], ids=["tall", "square", "wide"])


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Metric]:
    """A file of inputs of width 12, which excite some directions a hundred times as much as others, and their moment."""
    return moments(tmp_path / "own", seed=1)


def moments(path: Path, seed: int) -> tuple[Path, Metric]:
    """A file of made-up inputs, and their second moment with mean eigenvalue 1."""
    generator = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    inputs = torch.randn(60, 12, generator=generator) * torch.logspace(0, -1, 12) @ turned
    second = (inputs.T @ inputs / 60).double().numpy()
    return moments_of(inputs, path), second * 12 / np.trace(second)


def update_of(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def kept(delta: torch.Tensor, method: str, /, **parameters: Any) -> Metric:
    """Δ*, in float64; the base is 0."""
    start = torch.zeros_like(delta, dtype=torch.float64)
    found = deltamend.repair_state_dict({NAME: start}, {NAME: delta.double()}, method=method, parameters=parameters)
    result: Metric = found.tensors[NAME].numpy()
    return result


@SHAPES
@pytest.mark.parametrize("strength", [0.1, 3.0])
def test_the_identity_alone_is_null_space_with_one_ridge(
    own: tuple[Path, Metric], shape: tuple[int, int], strength: float
) -> None:
    update = update_of(shape)
    found = kept(update, "two-sided", activations=own[0], strength=strength, update=0, identity=1)

    np.testing.assert_allclose(found, kept(update, "null-space", activations=own[0], ridge=1 / strength), atol=1e-6)


@SHAPES
def test_the_same_metric_on_both_sides_is_wise_ft(own: tuple[Path, Metric], shape: tuple[int, int]) -> None:
    update = update_of(shape)
    given = {"activations": own[0], "target_activations": own[0], "strength": 3.0}
    found = kept(update, "two-sided", **given, update=0, identity=0, target=1)

    np.testing.assert_allclose(found, kept(update, "wise-ft", alpha=0.25), atol=1e-6)


@SHAPES
def test_the_update_alone_against_even_inputs_is_a_soft_threshold_on_singular_values(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    update, strength = update_of(shape), 2.0
    even = moments_of(12**0.5 * torch.eye(12), tmp_path / "even")
    found = kept(update, "two-sided", activations=even, strength=strength, update=1, identity=0)

    left, values, right = np.linalg.svd(update.double().numpy(), full_matrices=False)
    mean = np.sum(values**2) / 12
    np.testing.assert_allclose(found, (left * values**3 / (values**2 + strength * mean)) @ right, atol=1e-6)


def test_a_strength_of_zero_keeps_everything_and_a_large_one_next_to_nothing(own: tuple[Path, Metric]) -> None:
    update = update_of((9, 12))

    np.testing.assert_array_equal(kept(update, "two-sided", activations=own[0], strength=0), update.double().numpy())
    assert np.abs(kept(update, "two-sided", activations=own[0], strength=1e9)).max() < 1e-6


def test_more_strength_changes_less_on_the_bases_own_texts_and_keeps_less(own: tuple[Path, Metric]) -> None:
    update = update_of((9, 12))
    found = [kept(update, "two-sided", activations=own[0], strength=strength) for strength in (0.1, 1.0, 10.0)]
    changes = [np.trace(one @ own[1] @ one.T) for one in found]
    norms = [np.linalg.norm(one) for one in found]

    assert changes == sorted(changes, reverse=True)
    assert norms == sorted(norms, reverse=True)


@SHAPES
def test_it_is_the_minimum_of_what_it_says(own: tuple[Path, Metric], tmp_path: Path, shape: tuple[int, int]) -> None:
    update, strength = update_of(shape), 0.7
    file, target = moments(tmp_path / "target", seed=5)
    weights = {"update": 0.5, "identity": 0.1, "target": 0.4}
    found = kept(update, "two-sided", activations=own[0], target_activations=file, strength=strength, **weights)
    delta = update.double().numpy()
    squared = delta.T @ delta
    metric = 0.5 * squared * 12 / np.trace(squared) + 0.1 * np.eye(12) + 0.4 * target

    def objective(one: Metric) -> float:
        lost = one - delta
        return float(np.trace(lost @ metric @ lost.T) + strength * np.trace(one @ own[1] @ one.T))

    random = np.random.default_rng(0)
    least = objective(found)
    for _ in range(20):
        step = 1e-3 * random.standard_normal(shape)
        assert objective(found + step) > least
        assert objective(found - step) > least


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"update": 0, "identity": 0}, "update, identity and target are all 0"),
        ({"target": 0.5}, "target and target_activations go together"),
    ],
)
def test_weights_that_fit_nothing_are_refused(
    own: tuple[Path, Metric], parameters: dict[str, float], message: str
) -> None:
    with pytest.raises(deltamend.MethodError, match=message):
        get_method("two-sided", {"activations": own[0], **parameters})


def test_a_file_of_another_model_is_refused(own: tuple[Path, Metric]) -> None:
    update = update_of((9, 12))
    other = {"model.other.weight": torch.zeros_like(update)}

    with pytest.raises(deltamend.MethodError, match="holds the inputs of none of the matrices"):
        deltamend.repair_state_dict(
            other, {"model.other.weight": update}, method="two-sided", parameters={"activations": own[0]}
        )


def test_a_delta_with_nan_is_refused(own: tuple[Path, Metric]) -> None:
    update = update_of((9, 12))
    update[0, 0] = float("nan")

    with pytest.raises(deltamend.FilterError, match="NaN"):
        kept(update, "two-sided", activations=own[0])


def test_an_update_of_zero_stays_zero_where_the_sides_have_different_dtypes(own: tuple[Path, Metric]) -> None:
    weight = update_of((5, 12)).bfloat16()
    options: dict[str, Any] = {"method": "two-sided", "parameters": {"activations": own[0]}, "out_dtype": "fp32"}
    found = deltamend.repair_state_dict({NAME: weight}, {NAME: weight.float()}, **options)
    assert torch.equal(found.tensors[NAME], weight.float())


@pytest.mark.parametrize("update_weight", [0.0, 0.7, 0.95])
@pytest.mark.parametrize("strength", [0.3, 20.0])
@pytest.mark.parametrize("directions", [12, 7])
def test_a_wide_matrix_is_filtered_from_the_left_as_it_would_be_from_the_right(
    tmp_path: Path, update_weight: float, strength: float, directions: int
) -> None:
    # Exactly orthonormal, which fp32 eigenvectors are only to 1e-7.
    vectors = torch.eye(12)[torch.randperm(12, generator=torch.Generator().manual_seed(4))][:directions]
    values = torch.logspace(0, -3, directions)
    save_file(
        {NAME: vectors.contiguous(), f"{NAME}.eigenvalues": values},
        tmp_path / "some",
        metadata=described({}, {}),
    )
    given: dict[str, Any] = {
        "activations": tmp_path / "some",
        "strength": strength,
        "update": update_weight,
        "identity": 1 - update_weight,
    }
    if update_weight == 0.95:
        given["identity"] = 0.05
    update = update_of((5, 12)).double().numpy()
    base = (vectors.T.double() * values) @ vectors.double() * 12 / values.double().sum()
    weighed = update_weight * update.T @ update * 12 / np.trace(update.T @ update) + given["identity"] * np.eye(12)
    expected = update @ weighed @ np.linalg.inv(weighed + strength * base.numpy())
    np.testing.assert_allclose(kept(update_of((5, 12)), "two-sided", **given), expected, atol=1e-8)


def test_both_ways_weigh_errors_of_rounding_alike(own: tuple[Path, Metric]) -> None:
    method = get_method("two-sided", {"activations": own[0], "strength": 2.0})
    found = []
    for way in ("_from_the_left", "_from_the_right"):
        delta = ArrayBlocks(update_of((5, 12)).double().numpy())
        context = TensorContext(NAME, Never())
        inputs = inputs_of(own[0], context, 12)
        result = getattr(method, way)(delta, context, inputs)
        assert result.metric is not None
        found.append(result.metric())
    np.testing.assert_allclose(found[0], found[1], atol=1e-9)
