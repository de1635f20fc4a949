"""What every registered method promises, by a table with one row for each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import deltamend
from deltamend.calibration.activations import described
from deltamend.calibration.second_moments import principal_directions
from deltamend.matrices import buffers
from deltamend.matrices import delta as delta_module
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.views import MemoryMatrix
from deltamend.methods.input_moments import EIGENVALUES
from deltamend.methods.registry import all_methods, get_method
from deltamend.repairing.one_matrix import Job, open_delta
from tests.conftest import Pair
from tests.reference import load

SHAPES = {
    "model.embed_tokens.weight": (90, 24),
    "model.layers.0.self_attn.q_proj.weight": (32, 32),
    "model.layers.0.mlp.down_proj.weight": (24, 70),
    "model.layers.1.mlp.up_proj.weight": (70, 24),
    "model.layers.0.input_layernorm.weight": (24,),
    "model.conv.weight": (4, 3, 2),
}
FISHER = "fisher.safetensors"
ACTIVATIONS = "activations.safetensors"


@dataclass(frozen=True)
class Row:
    """A method's parameters in general, and those that keep everything and nothing; None where there are none."""

    parameters: dict[str, Any] = field(default_factory=dict)
    everything: dict[str, Any] | None = None
    nothing: dict[str, Any] | None = None
    spectral: bool = False
    """A sum over blocks decides, so blocks of another size may change the last bits."""
    surveyed: Any = None
    """What a look at the whole model may give, of a method that always takes one."""


TABLE = {
    "dg-hard": Row({}, {"noise": "known", "noise_level": 0}, {"scale": 100}, spectral=True),
    "shrink": Row({}, {"noise": "known", "noise_level": 0}, {"noise": "known", "noise_level": 100}, spectral=True),
    "rank": Row({"energy": 0.8}, {"share": 1}, {"rank": 0}, spectral=True),
    "energy-cut": Row({"energy": 0.8}, {"energy": 1}, {"energy": 0}, spectral=True, surveyed=0.1),
    "laser": Row({"share": 0.5}, {"share": 1}, spectral=True),
    "intruder": Row({"epsilon": 0.9}, {"keep": 1}, spectral=True),
    "wise-ft": Row({"alpha": 0.3}, {"alpha": 1}, {"alpha": 0}),
    "task-arithmetic": Row({"weight": 0.3}, {"weight": 1}, {"weight": 0}),
    "lines": Row({"alpha": 0.3}, {"alpha": 1}, surveyed=2),
    "magnitude": Row({"density": 0.3}, {"density": 1}, {"density": 0}),
    "ties": Row({"density": 0.3, "scope": "model", "weight": 0.7}, {"density": 1}, {"density": 0}),
    "breadcrumbs": Row({"density": 0.5, "gamma": 0.1}, {"density": 1, "gamma": 0}, {"density": 0}),
    "dare": Row({"density": 0.4}, {"density": 1}, {"density": 0}),
    "della": Row({"density": 0.4, "epsilon": 0.2}, {"density": 1}, {"density": 0}),
    "fapm": Row({"density": 0.3}, {"density": 1}, {"density": 0}),
    "graft": Row({"density": 0.2}, {"density": 1}, {"density": 0}),
    "fisher": Row({"fisher": FISHER}, {"fisher": FISHER, "alpha": 1}, {"fisher": FISHER, "alpha": 0}),
    "null-space": Row(
        {"activations": ACTIVATIONS},
        {"activations": ACTIVATIONS, "effect": 10},
        {"activations": ACTIVATIONS, "effect": 0},
        spectral=True,
    ),
    "equal-effect": Row(
        {"activations": ACTIVATIONS},
        {"activations": ACTIVATIONS, "effect": 10},
        {"activations": ACTIVATIONS, "effect": 0},
        spectral=True,
    ),
    "two-sided": Row({"activations": ACTIVATIONS}, {"activations": ACTIVATIONS, "strength": 0}, spectral=True),
    "hybrid": Row(
        {"steps": [{"method": "rank", "rank": 3}, {"method": "magnitude", "density": 0.3}]},
        {"steps": [{"method": "none"}, {"method": "wise-ft", "alpha": 1}]},
        {"steps": [{"method": "rank", "rank": 3}, {"method": "wise-ft", "alpha": 0}]},
        spectral=True,
    ),
    "none": Row({}, {}),
    "revert": Row({}, None, {}),
}
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def states() -> tuple[State, State]:
    """A base and a fine-tuned state dict in fp32, with a signal of rank 2 and noise; some weights are 0, some unchanged."""
    generator = torch.Generator().manual_seed(3)
    base = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    finetuned = {}
    for name, tensor in base.items():
        tensor.view(-1)[::17] = 0.0
        update = 1e-3 * torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 2:
            left, right = (torch.randn(side, 2, generator=generator) for side in tensor.shape)
            update += 2e-2 * left @ right.T
        update.view(-1)[::5] = 0.0
        finetuned[name] = tensor + update
    return base, finetuned


@pytest.fixture(scope="module", autouse=True)
def fisher_file(states: tuple[State, State], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squared gradients for every tensor of `states`; second moments lie beside it."""
    generator = torch.Generator().manual_seed(4)
    path = tmp_path_factory.mktemp("fisher") / FISHER
    save_file({name: torch.randn(tensor.shape, generator=generator) ** 2 for name, tensor in states[1].items()}, path)
    save_moments(states[1], path.with_name(ACTIVATIONS))
    return path


def save_moments(state: State, path: Path) -> None:
    """What made-up inputs of every matrix look like."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    for name, tensor in state.items():
        if tensor.ndim > 1:
            inputs = torch.randn(99, tensor[0].numel(), generator=generator)
            found[name], found[f"{name}{EIGENVALUES}"] = principal_directions(inputs.T @ inputs / len(inputs))
    save_file(found, path, metadata=described({}, {}))


def parameters_of(given: dict[str, Any], fisher_file: Path) -> dict[str, Any]:
    files = {"fisher": fisher_file, "activations": fisher_file.with_name(ACTIVATIONS)}
    return {name: str(files[name]) if name in files else value for name, value in given.items()}


def repaired(states: tuple[State, State], method: str, parameters: dict[str, Any], **options: Any) -> State:
    return deltamend.repair_state_dict(*states, method=method, parameters=parameters, **options).tensors


def test_the_table_has_a_row_for_every_method() -> None:
    assert list(TABLE) == list(all_methods())


@pytest.mark.parametrize("method", TABLE)
def test_a_zero_delta_stays_zero(method: str, states: tuple[State, State], fisher_file: Path) -> None:
    parameters = parameters_of(TABLE[method].parameters, fisher_file)
    base = states[0]
    out = repaired((base, {name: tensor.clone() for name, tensor in base.items()}), method, parameters)
    assert all(torch.equal(out[name], base[name]) for name in base)


@pytest.mark.parametrize("method", TABLE)
def test_inputs_are_not_mutated_and_shapes_and_dtypes_are_kept(
    method: str, states: tuple[State, State], fisher_file: Path
) -> None:
    parameters = parameters_of(TABLE[method].parameters, fisher_file)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        pair = tuple({name: tensor.to(dtype) for name, tensor in side.items()} for side in states)
        before = [{name: tensor.clone() for name, tensor in side.items()} for side in pair]
        out = repaired((pair[0], pair[1]), method, parameters)
        for side, copied in zip(pair, before, strict=True):
            assert all(torch.equal(side[name], copied[name]) for name in side)
        for name, tensor in out.items():
            assert (tensor.shape, tensor.dtype, tensor.device) == (SHAPES[name], dtype, pair[1][name].device)
            assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("method", TABLE)
def test_applying_leaves_the_delta_alone(method: str, states: tuple[State, State], fisher_file: Path) -> None:
    made = get_method(method, {**parameters_of(TABLE[method].parameters, fisher_file)} | _per_tensor(method))
    name = "model.layers.0.mlp.down_proj.weight"
    sides = [MemoryMatrix(side[name].numpy()) for side in states]
    delta, context = open_delta(sides[0], sides[1], Job(name, 24, made), Buffers())
    before = [block.values.copy() for block in delta]
    made.apply(delta, replace(context, surveyed=TABLE[method].surveyed))
    assert all(np.array_equal(block.values, copied) for block, copied in zip(delta, before, strict=True))


def _per_tensor(method: str) -> dict[str, Any]:
    return {"scope": "tensor"} if "scope" in all_methods()[method].model_fields else {}


@pytest.mark.parametrize("method", TABLE)
def test_what_is_excluded_or_no_matrix_has_the_fine_tuned_bytes(
    method: str, states: tuple[State, State], fisher_file: Path
) -> None:
    parameters = parameters_of(TABLE[method].parameters, fisher_file)
    out = repaired(states, method, parameters, exclude="mlp")
    for name, tensor in out.items():
        if "mlp" in name or tensor.ndim == 1:
            assert torch.equal(tensor, states[1][name])


@pytest.mark.parametrize("method", TABLE)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["BASE", "FINETUNED"])
def test_nan_and_infinity_are_refused(
    method: str, value: float, side: str, states: tuple[State, State], fisher_file: Path
) -> None:
    damaged = {name: tensor.clone() for name, tensor in states[side == "FINETUNED"].items()}
    damaged["model.layers.0.mlp.down_proj.weight"][3, 5] = value
    pair = (damaged, states[1]) if side == "BASE" else (states[0], damaged)
    with pytest.raises(deltamend.FilterError, match=rf"down_proj.weight' holds NaN or Inf in {side}"):
        repaired(pair, method, parameters_of(TABLE[method].parameters, fisher_file))


@pytest.mark.parametrize("method", [name for name, row in TABLE.items() if row.everything is not None])
def test_keeping_everything_is_the_fine_tuned_model(
    method: str, states: tuple[State, State], fisher_file: Path
) -> None:
    out = repaired(states, method, parameters_of(TABLE[method].everything or {}, fisher_file))
    assert all(torch.equal(out[name], states[1][name]) for name in out)


@pytest.mark.parametrize("method", [name for name, row in TABLE.items() if row.nothing is not None])
def test_keeping_nothing_is_the_base(method: str, states: tuple[State, State], fisher_file: Path) -> None:
    out = repaired(states, method, parameters_of(TABLE[method].nothing or {}, fisher_file))
    assert all(torch.equal(out[name], states[0][name]) for name, tensor in out.items() if tensor.ndim == 2)


@pytest.mark.parametrize("method", [name for name in TABLE if name != "none"])
def test_with_its_defaults_a_method_is_not_the_identity(
    method: str, states: tuple[State, State], fisher_file: Path
) -> None:
    """Of what has no default, files and steps are given, and a number has to have an example that is not the identity either.

    The update is large enough beside the base that it makes singular vectors of its own, which `intruder` looks for.
    """
    required = {name: info for name, info in all_methods()[method].model_fields.items() if info.is_required()}
    given = {name: TABLE[method].parameters[name] for name, info in required.items() if not info.examples}
    example = {name: info.examples[0] for name, info in required.items() if info.examples}
    for name in example:
        with pytest.raises(
            deltamend.MethodError, match=rf'parameter .{name}.: is missing; give for example parameters={{"{name}"'
        ):
            get_method(method)
    base, finetuned = states[0], {name: old + 10 * (states[1][name] - old) for name, old in states[0].items()}
    out = repaired((base, finetuned), method, parameters_of({**given, **example}, fisher_file))
    assert any(not torch.equal(out[name], finetuned[name]) for name in out)


@pytest.mark.slow
@pytest.mark.parametrize("method", TABLE)
def test_blocks_of_any_size_give_the_same(
    method: str, states: tuple[State, State], fisher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = TABLE[method]
    parameters = parameters_of(row.parameters, fisher_file)
    whole = repaired(states, method, parameters)
    assert any(not torch.equal(whole[name], states[1][name]) for name in whole) == (method != "none")
    for rows in (1, 7):
        # Every matrix is cut; 7 leaves a rest.
        monkeypatch.setattr(delta_module, "BLOCK_ELEMENTS", rows * 32)
        monkeypatch.setattr(buffers, "CHUNK_ELEMENTS", 3 * 32)
        monkeypatch.setattr("deltamend.methods.elementwise._TILE_ELEMENTS", 2 * 32)
        for name, tensor in repaired(states, method, parameters).items():
            if row.spectral:
                torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-6)
            else:
                assert torch.equal(tensor, whole[name])


def _weights_and_manifest(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    tensors = json.loads((folder / "deltamend.json").read_text())["tensors"]
    for tensor in tensors:
        del tensor["seconds"]
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}, tensors


@pytest.mark.slow
@pytest.mark.parametrize("method", TABLE)
def test_any_number_of_workers_gives_the_same_bytes(method: str, llama_pair: Pair, tmp_path: Path) -> None:
    fisher = tmp_path / FISHER
    if method == "fisher":
        save_file({name: tensor.float() ** 2 for name, tensor in load(llama_pair.finetuned).items()}, fisher)
    if "activations" in TABLE[method].parameters:
        save_moments(load(llama_pair.finetuned), tmp_path / ACTIVATIONS)
    parameters = parameters_of(TABLE[method].parameters, fisher)
    results = []
    for workers in (1, 4):
        out = tmp_path / f"out{workers}"
        deltamend.repair(
            llama_pair.base, llama_pair.finetuned, out, method=method, parameters=parameters, workers=workers
        )
        results.append(_weights_and_manifest(out))
    assert results[0] == results[1]


def test_a_seed_chooses_the_mask(states: tuple[State, State]) -> None:
    for method in ("dare", "della"):
        first = repaired(states, method, {"seed": 0})
        again = repaired(states, method, {"seed": 0})
        other = repaired(states, method, {"seed": 1})
        name = "model.embed_tokens.weight"
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
