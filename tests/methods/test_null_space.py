from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deltamend
from deltamend.calibration.activations import described
from deltamend.calibration.second_moments import principal_directions
from deltamend.errors import FilterError, MethodError
from deltamend.methods.input_moments import EIGENVALUES, SAME_INPUT
from tests.conftest import fine_tune, llama, save_pair

NAME = "model.layers.0.mlp.up_proj.weight"


def moments_of(inputs: torch.Tensor, path: Path, name: str = NAME, **same: str) -> Path:
    vectors, values = principal_directions((inputs.T @ inputs / len(inputs)).float())
    save_file({name: vectors, f"{name}{EIGENVALUES}": values}, path, metadata=described(same, {}))
    return path


def kept(
    update: torch.Tensor, path: Path, name: str = NAME, base: torch.Tensor | None = None, **parameters: Any
) -> torch.Tensor:
    """Δ*, which is what is written where the base is 0."""
    start = torch.zeros_like(update) if base is None else base
    given = {"activations": path, **parameters}
    found = deltamend.repair_state_dict({name: start}, {name: start + update}, method="null-space", parameters=given)
    return found.tensors[name] - start


@pytest.mark.parametrize("shape", [(40, 12), (12, 12), (5, 12)])
def test_it_is_the_ridge_solution(shape: tuple[int, int], tmp_path: Path) -> None:
    inputs, update = torch.randn(30, 12) * torch.arange(1, 13), torch.randn(shape)
    found = kept(update, moments_of(inputs, tmp_path / "c"), ridge=0.3)
    second = (inputs.T @ inputs / 30).double()
    strength = 0.3 * float(second.trace()) / 12
    # argmin over D of mean ‖Dx‖² + λ‖D − Δ‖², by least squares on the stacked system
    rows = np.vstack([inputs.double().numpy() / np.sqrt(30), np.sqrt(strength) * np.eye(12)])
    right = np.vstack([np.zeros((30, shape[0])), np.sqrt(strength) * update.double().numpy().T])
    expected = np.linalg.lstsq(rows, right, rcond=None)[0].T
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_common_inputs_are_answered_as_by_the_base_and_others_as_by_the_fine_tuned(tmp_path: Path) -> None:
    inputs = torch.zeros(50, 6)
    inputs[:, :2] = torch.randn(50, 2)
    update = torch.randn(4, 6)
    found = kept(update, moments_of(inputs, tmp_path / "c"), ridge=1e-4)
    assert found[:, :2].abs().max() < 1e-3
    torch.testing.assert_close(found[:, 2:], update[:, 2:])


def test_a_larger_ridge_keeps_more(tmp_path: Path) -> None:
    path, update = moments_of(torch.randn(30, 8), tmp_path / "c"), torch.randn(9, 8)
    norms = [float(kept(update, path, ridge=ridge).norm()) for ridge in (0.0, 0.1, 1.0, 10.0, 1e9)]
    assert norms == sorted(norms)
    assert norms[0] == 0.0
    assert norms[-1] == pytest.approx(float(update.norm()), rel=1e-6)


@pytest.mark.parametrize("budget", [0.5, 0.05, 0.001])
def test_the_effect_on_the_bases_inputs_is_what_was_asked_for(budget: float, tmp_path: Path) -> None:
    inputs, update, base = torch.randn(40, 12) * torch.arange(1, 13), torch.randn(30, 12), torch.randn(30, 12)
    found = kept(update, moments_of(inputs, tmp_path / "c"), base=base, effect=budget)
    effect = (inputs @ found.T).norm() / (inputs @ base.T).norm()
    assert float(effect) == pytest.approx(budget, rel=1e-2)


@pytest.mark.parametrize(("effect", "share", "after"), [(10.0, 0.25, 0.25), (10.0, 1.0, 1.0), (0.01, 0.25, None)])
def test_the_effect_on_the_bases_inputs_is_no_larger_share_than_was_asked_for(
    effect: float, share: float, after: float | None, tmp_path: Path
) -> None:
    inputs, update, base = torch.randn(40, 12) * torch.arange(1, 13), torch.randn(30, 12), torch.randn(30, 12)
    path = moments_of(inputs, tmp_path / "c")
    found = kept(update, path, base=base, effect=effect, share=share)
    if after is None:  # the effect that is allowed is the smaller of the two
        assert torch.equal(found, kept(update, path, base=base, effect=effect))
    else:
        assert float((inputs @ found.T).norm() / (inputs @ update.T).norm()) == pytest.approx(after, rel=1e-2)


def test_an_update_within_the_budget_is_kept_whole(tmp_path: Path) -> None:
    inputs, update, base = torch.randn(40, 12), 1e-4 * torch.randn(30, 12), torch.randn(30, 12)
    found = kept(update, moments_of(inputs, tmp_path / "c"), base=base)
    assert torch.equal(found, (base + update) - base)


def test_of_inputs_fewer_than_the_columns_the_rest_is_free(tmp_path: Path) -> None:
    inputs, update, base = torch.randn(4, 12), torch.randn(9, 12), torch.randn(9, 12)
    found = kept(update, moments_of(inputs, tmp_path / "c"), base=base, effect=1e-6)
    assert float((inputs @ found.T).norm() / (inputs @ base.T).norm()) < 1e-5
    free = torch.linalg.svd(inputs, full_matrices=True).Vh[4:]
    torch.testing.assert_close(found @ free.T, update @ free.T, rtol=1e-4, atol=1e-4)


def test_weights_that_share_an_input_share_its_moments_and_others_are_kept_as_fine_tuned(tmp_path: Path) -> None:
    update = torch.randn(7, 6)
    same = {"model.layers.0.self_attn.k_proj.weight": NAME}
    path = moments_of(torch.randn(30, 6), tmp_path / "c", **same)
    assert torch.equal(
        kept(update, path, ridge=1), kept(update, path, "model.layers.0.self_attn.k_proj.weight", ridge=1)
    )
    both = {NAME: update, "model.embed_tokens.weight": update.clone()}
    zeros = {name: torch.zeros_like(update) for name in both}
    found = deltamend.repair_state_dict(zeros, both, method="null-space", parameters={"activations": path, "ridge": 1})
    assert torch.equal(found.tensors["model.embed_tokens.weight"], update)
    assert not torch.equal(found.tensors[NAME], update)


@pytest.mark.parametrize(
    ("vectors", "values", "message"),
    [
        (torch.eye(5), torch.ones(5), "holds its inputs as .5, 5."),
        (torch.eye(6), torch.ones(5), "holds its inputs as .6, 6."),
        (torch.eye(6).half(), torch.ones(6), "as F16"),
        (torch.full((6, 6), torch.nan), torch.ones(6), "no second moments"),
        (torch.eye(6), -torch.ones(6), "no second moments"),
        (torch.eye(6), torch.full((6,), torch.inf), "no second moments"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(
    vectors: torch.Tensor, values: torch.Tensor, message: str, tmp_path: Path
) -> None:
    save_file({NAME: vectors, f"{NAME}{EIGENVALUES}": values}, tmp_path / "c", metadata=described({}, {}))
    with pytest.raises(FilterError, match=message):
        kept(torch.randn(3, 6), tmp_path / "c")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("{}")
    with pytest.raises(MethodError, match="is no file of `deltamend calibrate activations`"):
        kept(torch.randn(3, 6), tmp_path / "c")
    for metadata in (None, described({}, {}) | {"activations": "0"}, described({}, {}) | {SAME_INPUT: "[1]"}):
        save_file({NAME: torch.eye(6), f"{NAME}{EIGENVALUES}": torch.ones(6)}, tmp_path / "d", metadata=metadata)
        with pytest.raises(MethodError, match="its metadata is not that of"):
            kept(torch.randn(3, 6), tmp_path / "d")


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = moments_of(torch.randn(9, 6), tmp_path / "c", name="transformer.other.weight")
    with pytest.raises(
        MethodError, match="c holds the inputs of none of the matrices; compute it from the base of this pair"
    ):
        kept(torch.randn(3, 6), path)


def test_an_output_that_is_zero_in_the_base_stays_so(tmp_path: Path) -> None:
    inputs, update = torch.randn(4, 12), torch.randn(9, 12)
    found = kept(update, moments_of(inputs, tmp_path / "c"))
    assert (inputs @ found.T).abs().max() < 1e-4 * (inputs @ update.T).abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_any_dtype_are_bent(dtype: torch.dtype, tmp_path: Path) -> None:
    inputs, update, base = torch.randn(40, 12), torch.randn(30, 12), torch.randn(30, 12)
    path = moments_of(inputs, tmp_path / "c")
    found = kept(update.to(dtype), path, base=base.to(dtype), effect=0.1)
    assert found.dtype == dtype
    effect = (inputs @ found.float().T).norm() / (inputs @ base.T).norm()
    assert float(effect) == pytest.approx(0.1, rel=0.05)


def moments_of_all(folder: Path, path: Path) -> Path:
    """Random inputs for every matrix of a checkpoint but an embedding that is not tied to a head."""
    weights = load_file(folder / "model.safetensors")
    tied = "lm_head.weight" not in weights
    names = [name for name, one in weights.items() if one.ndim == 2 and (tied or "embed_tokens" not in name)]
    held = {}
    for name in names:
        inputs = torch.randn(20, weights[name].shape[1])
        held[name], held[f"{name}{EIGENVALUES}"] = principal_directions(inputs.T @ inputs / 20)
    save_file(held, path, metadata=described({}, {}))
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_inputs_go_by_the_names_of_the_base(tied: bool, tmp_path: Path) -> None:
    model = llama(torch.float32, tied=tied)
    pair = save_pair(model, tmp_path)
    given = {"activations": moments_of_all(pair.base, tmp_path / "c"), "ridge": 1.0}
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "plain", method="null-space", parameters=given)
    weights = load_file(pair.finetuned / "model.safetensors")
    wrapped = {name.replace("model.", "model.language_model."): one for name, one in weights.items()}
    save_file(wrapped, pair.finetuned / "model.safetensors", metadata={"format": "pt"})
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "wrapped", method="null-space", parameters=given)
    plain, found = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "wrapped"))
    assert len(found) == len(plain)
    assert all(torch.equal(found[name.replace("model.", "model.language_model.")], one) for name, one in plain.items())


def test_a_tied_matrix_is_repaired_in_memory_as_in_files(tmp_path: Path) -> None:
    base, finetuned = (llama(torch.float32, tied=True) for _ in range(2))
    fine_tune(finetuned)
    for model, name in ((base, "base"), (finetuned, "finetuned")):
        model.save_pretrained(tmp_path / name)
    given = {"activations": moments_of_all(tmp_path / "base", tmp_path / "c"), "ridge": 1.0}
    deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out", method="null-space", parameters=given)
    in_files = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    found = deltamend.repair_module(base, finetuned, method="null-space", parameters=given)
    repaired, records = found.module, found.records
    state = repaired.state_dict()
    assert torch.equal(state["lm_head.weight"], in_files)
    assert torch.equal(state["model.embed_tokens.weight"], in_files)
    assert records["lm_head.weight"].outcome == records["model.embed_tokens.weight"].outcome == "filtered"


def test_a_head_that_only_the_base_ties_is_bent_and_the_embedding_kept(tmp_path: Path) -> None:
    base, finetuned = llama(torch.float32, tied=True), llama(torch.float32)
    finetuned.load_state_dict({name: one.clone() for name, one in base.state_dict().items()})
    fine_tune(finetuned)
    for model, name in ((base, "base"), (finetuned, "finetuned")):
        model.save_pretrained(tmp_path / name)
    given = {"activations": moments_of_all(tmp_path / "base", tmp_path / "c"), "ridge": 1.0}
    report = deltamend.repair(
        tmp_path / "base", tmp_path / "finetuned", tmp_path / "out", method="null-space", parameters=given
    )
    outcomes = {tensor.name: tensor.outcome for tensor in report.tensors}
    assert outcomes["lm_head.weight"] == "filtered"
    assert outcomes["model.embed_tokens.weight"] == "identity"
    records = deltamend.repair_module(base, finetuned, method="null-space", parameters=given).records
    assert records["lm_head.weight"].outcome == "filtered"
    assert records["model.embed_tokens.weight"].outcome == "identity"
