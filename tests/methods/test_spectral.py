from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

import deltamend
from deltamend.spectrum.decompositions import Workspace
from deltamend.spectrum.noise import rounding_variance
from deltamend.spectrum.thresholds import optimal_coefficient

Array = npt.NDArray[np.float64]
NAME = "layers.0.weight"
SHAPES = [(60, 40), (40, 60), (50, 50)]


def pair(shape: tuple[int, int], *, noise: float = 1e-2) -> tuple[Array, Array]:
    """A base, and an update of rank 2 in noise."""
    generator = np.random.default_rng(7)
    signal = generator.normal(size=(shape[0], 2)) @ generator.normal(size=(2, shape[1]))
    return generator.normal(size=shape), 0.05 * signal + noise * generator.normal(size=shape)


def kept(method: str, base: Array, update: Array, **parameters: Any) -> Array:
    """Δ* of one float64 matrix."""
    sides = [{NAME: torch.from_numpy(matrix)} for matrix in (base, base + update)]
    out = deltamend.repair_state_dict(sides[0], sides[1], method=method, parameters=parameters)
    result: Array = out.tensors[NAME].numpy() - base
    return result


def rebuilt(matrix: Array, values: Array) -> Array:
    """The matrix with other singular values."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    result: Array = (left * values) @ right
    return result


def hard(matrix: Array, threshold: float) -> Array:
    values = np.linalg.svd(matrix, compute_uv=False)
    return rebuilt(matrix, np.where(values > threshold, values, 0.0))


@pytest.mark.parametrize("shape", SHAPES)
def test_dg_hard_with_known_noise_and_a_scale(shape: tuple[int, int]) -> None:
    base, update = pair(shape)
    tau = optimal_coefficient(min(shape) / max(shape)) * np.sqrt(max(shape)) * 0.01
    out = kept("dg-hard", base, update, noise="known", noise_level=0.01)
    np.testing.assert_allclose(out, hard(update, tau), atol=1e-9)
    assert np.linalg.matrix_rank(out, tol=1e-6) == 2
    out = kept("dg-hard", base, update, noise="known", noise_level=0.01, scale=0.7)
    np.testing.assert_allclose(out, hard(update, 0.7 * tau), atol=1e-9)
    assert np.linalg.matrix_rank(out, tol=1e-6) > 2


@pytest.mark.parametrize(
    "parameters",
    [{"noise": noise} for noise in ("median", "q25", "bulk-fit", "screenot")]
    + [{"rule": "edge"}, {"rule": "tracy-widom"}],
)
def test_every_noise_source_and_rule_finds_the_planted_rank(parameters: dict[str, Any]) -> None:
    base, update = pair((60, 40))
    rank = np.linalg.matrix_rank(kept("dg-hard", base, update, **parameters), tol=1e-6)
    assert rank == 2 or (parameters == {"rule": "edge"} and rank in (2, 3))


def test_the_rounding_floor_is_that_of_the_stored_dtype() -> None:
    base, update = pair((60, 40))
    ours = {NAME: torch.from_numpy(base).bfloat16()}
    theirs = {NAME: torch.from_numpy(base + update).bfloat16()}
    out = deltamend.repair_state_dict(ours, theirs, parameters={"noise": "rounding-floor"}, out_dtype="fp32")
    floor = np.sqrt(rounding_variance(theirs[NAME].float().numpy(), "bfloat16").mean())
    found = out.records[NAME].spectrum
    assert found is not None
    assert found.noise == pytest.approx(floor, rel=1e-6)


@pytest.mark.parametrize("loss", ["frobenius", "operator", "nuclear", "soft"])
def test_shrinkage_is_its_formula(loss: str) -> None:
    shape = (60, 40)
    base, update = pair(shape)
    unit, beta = 0.01 * np.sqrt(60), 40 / 60
    values = np.linalg.svd(update, compute_uv=False)
    y = values[values > unit * (1 + np.sqrt(beta))] / unit
    square = np.sqrt((y**2 - beta - 1) ** 2 - 4 * beta)
    x = np.sqrt((y**2 - beta - 1 + square) / 2)
    expected = {
        "frobenius": square / y,
        "operator": x * np.sqrt((x**2 + beta) / (x**2 + 1)),
        "nuclear": np.maximum((x**4 - beta - np.sqrt(beta) * x * y) / (x**2 * y), 0),
        "soft": y - (1 + np.sqrt(beta)),
    }[loss]
    shrunken = np.zeros_like(values)
    shrunken[: y.size] = unit * expected
    out = kept("shrink", base, update, loss=loss, noise="known", noise_level=0.01)
    np.testing.assert_allclose(out, rebuilt(update, shrunken), atol=1e-9)


@pytest.mark.parametrize(
    ("parameters", "rank"), [({"rank": 3}, 3), ({"share": 0.25}, 10), ({}, None), ({"energy": 0.5}, None)]
)
def test_truncation_keeps_the_rank_asked_for(parameters: dict[str, Any], rank: int | None) -> None:
    base, update = pair((60, 40))
    values = np.linalg.svd(update, compute_uv=False)
    if rank is None:
        energies = np.cumsum(values**2) / np.sum(values**2)
        rank = int(np.searchsorted(energies, parameters.get("energy", 0.9))) + 1
    np.testing.assert_allclose(kept("rank", base, update, **parameters), hard(update, values[rank] * 1.0001), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_laser_reduces_the_weight(shape: tuple[int, int]) -> None:
    base, update = pair(shape)
    values = np.linalg.svd(base + update, compute_uv=False)
    rank = round(0.3 * min(shape))
    expected = hard(base + update, values[rank] * 1.0001) - base
    np.testing.assert_allclose(kept("laser", base, update, share=0.3), expected, atol=1e-9)


class OneLayer(torch.nn.Module):
    """A model of one linear layer, for peft."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(shape[1], shape[0], bias=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Not used."""
        result: torch.Tensor = self.proj(values)
        return result


@pytest.mark.parametrize("shape", SHAPES)
def test_intruder_dimensions_are_those_peft_finds(shape: tuple[int, int]) -> None:
    peft = pytest.importorskip("peft", reason="peft is the reference here; install the dev extra")
    intruders: Any = importlib.import_module("peft.tuners.lora.intruders")
    torch.manual_seed(0)
    rank, keep = 4, 0.6
    model = peft.get_peft_model(
        OneLayer(shape).double(), peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["proj"])
    )
    layer = model.base_model.model.proj
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.randn(rank, shape[1]))
        layer.lora_B["default"].weight.copy_(torch.randn(shape[0], rank))
    base = layer.get_base_layer().weight.detach().clone()
    update = layer.get_delta_weight("default").detach().clone().to(base.dtype)
    intruders.reduce_intruder_dimension(
        model, top_k=6, threshold_epsilon=0.7, mitigation_lambda=keep, logging_sink=None
    )
    expected = layer.get_delta_weight("intruder_reduced").detach().numpy()
    ours = deltamend.repair_state_dict(
        {NAME: base},
        {NAME: base + update},
        method="intruder",
        parameters={"top": 6, "epsilon": 0.7, "keep": keep},
    )
    assert "intruder dimension" in ours.records[NAME].reason
    out = (ours.tensors[NAME] - base).numpy()
    assert np.linalg.norm(out - update.numpy()) > 0.1 * np.linalg.norm(update.numpy())
    # peft keeps what an adapter of its rank can hold; ours keeps all.
    values = np.linalg.svd(out, compute_uv=False)
    truncated = rebuilt(out, np.where(np.arange(values.size) < rank, values, 0.0))
    assert np.linalg.norm(truncated - expected) < 2e-5 * np.linalg.norm(expected)


def test_directions_the_base_has_are_no_intruders() -> None:
    base, _ = pair((60, 40))
    record = deltamend.repair_state_dict(
        {NAME: torch.from_numpy(base)}, {NAME: torch.from_numpy(1.1 * base)}, method="intruder"
    ).records[NAME]
    assert (record.outcome, record.reason) == ("identity", "no intruder dimension")


@pytest.mark.parametrize(
    "then",
    [{"method": "wise-ft", "alpha": 0.3}, {"method": "magnitude", "density": 0.2}, {"method": "rank", "rank": 1}],
)
@pytest.mark.parametrize("first", [{"method": "dg-hard"}, {"method": "none"}, {"method": "rank", "rank": 0}])
def test_a_hybrid_is_one_method_after_another(first: dict[str, Any], then: dict[str, Any]) -> None:
    base, update = pair((60, 40))
    expected = update
    for step in (first, then):
        parameters = {key: value for key, value in step.items() if key != "method"}
        if expected.any():
            expected = kept(str(step["method"]), base, expected, **parameters)
    np.testing.assert_allclose(kept("hybrid", base, update, steps=[first, then]), expected, atol=1e-8)


def test_steps_that_need_more_than_a_block_are_refused() -> None:
    for step in ({"method": "della"}, {"method": "graft"}, {"method": "hybrid"}, {"method": "dg-hrad"}, {"rank": 3}):
        with pytest.raises(deltamend.MethodError, match=r"'hybrid', parameter 'steps'"):
            deltamend.get_method("hybrid", {"steps": [step]})


def test_fisher_weights_entries(tmp_path: Path) -> None:
    base, update = pair((60, 40))
    generator = np.random.default_rng(1)
    ours, theirs = generator.uniform(size=(60, 40)), generator.uniform(size=(60, 40))
    ours[0, :3], theirs[0, :2] = 0.0, 0.0
    for name, values in (("ours", ours), ("theirs", theirs)):
        save_file({NAME: torch.from_numpy(values)}, tmp_path / name)
    with np.errstate(invalid="ignore"):
        share = 0.3 * ours / (0.3 * ours + 0.7 * theirs)
    share[0, :2] = 0.3
    files: dict[str, Any] = {"fisher": tmp_path / "ours", "base_fisher": tmp_path / "theirs", "alpha": 0.3}
    np.testing.assert_allclose(kept("fisher", base, update, **files), share * update, atol=1e-14)
    share = 0.3 * ours / (0.3 * ours + 0.7 * ours.mean())
    files = {"fisher": tmp_path / "ours", "alpha": 0.3}
    np.testing.assert_allclose(kept("fisher", base, update, **files), share * update, atol=1e-14)


def test_a_fisher_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    base, update = pair((60, 40))
    save_file({"other": torch.ones(60, 40)}, tmp_path / "name")
    save_file({NAME: torch.ones(40, 60)}, tmp_path / "shape")
    save_file({NAME: -torch.ones(60, 40)}, tmp_path / "sign")
    for name, message in (("name", "no tensor of this name"), ("shape", r"\[40, 60\]"), ("sign", "not squares")):
        with pytest.raises(deltamend.FilterError, match=message):
            kept("fisher", base, update, fisher=tmp_path / name)
    with pytest.raises(deltamend.MethodError, match="does not point to a file"):
        kept("fisher", base, update, fisher=tmp_path / "none")


def test_what_is_recorded_of_a_fisher_file_is_its_name_and_content(tmp_path: Path) -> None:
    save_file({NAME: torch.ones(3, 3)}, tmp_path / "squares.safetensors")
    text = deltamend.get_method("fisher", {"fisher": tmp_path / "squares.safetensors"}).described()
    assert text.startswith("fisher fisher=squares.safetensors sha256:")
    assert str(tmp_path) not in text


def test_what_a_hybrid_records_is_as_given_but_for_files(tmp_path: Path) -> None:
    given = [{"weight": "0.6", "method": "task_arithmetic"}, {"method": "dg-hard"}]
    assert deltamend.get_method("hybrid", {"steps": given}).model_dump_json() == json.dumps(
        {"steps": given}, separators=(",", ":")
    )
    save_file({NAME: torch.ones(3, 3)}, tmp_path / "squares.safetensors")
    for path in (tmp_path / "squares.safetensors", str(tmp_path / "squares.safetensors")):
        first = {"method": "fisher", "fisher": path, "base_fisher": path, "alpha": 0.3}
        made = deltamend.get_method("hybrid", {"steps": [first, given[0]]})
        alone = deltamend.get_method("fisher", {"fisher": path}).model_dump(mode="json")["fisher"]
        written = {"method": "fisher", "fisher": alone, "base_fisher": alone, "alpha": 0.3}
        assert made.model_dump(mode="json")["steps"] == [written, given[0]]
        assert str(tmp_path) not in made.described()


def test_intruders_are_found_whatever_scratch_memory_held(monkeypatch: pytest.MonkeyPatch) -> None:
    base, update = pair((40, 60))
    expected = kept("intruder", base, 20 * update, epsilon=0.9)
    original = Workspace.array

    def poisoned(self: Workspace, *arguments: Any) -> Any:
        array = original(self, *arguments)
        array.fill(np.nan)
        return array

    monkeypatch.setattr(Workspace, "array", poisoned)
    np.testing.assert_array_equal(kept("intruder", base, 20 * update, epsilon=0.9), expected)
