"""Rules decide the method of each tensor: the first that matches, then the default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import deltamend
from deltamend.checkpoint.architecture import kind_of, layer_of
from deltamend.errors import MethodError, UsageError
from deltamend.methods.registry import get_method
from deltamend.repairing.rules import MethodChoice, Rule, read_rules
from tests.conftest import Pair
from tests.reference import load

MLP = "model.layers.3.mlp.up_proj.weight"
NORM = "model.layers.3.input_layernorm.weight"


@pytest.mark.parametrize(
    ("rule", "name", "matrix", "matches"),
    [
        ({}, MLP, True, True),
        ({}, NORM, False, False),  # a rule is for matrices,
        ({"kind": "norm", "method": "revert"}, NORM, False, True),  # unless it is for norms
        ({"kind": "norm", "method": "revert"}, MLP, True, False),
        ({"kind": "mlp"}, MLP, True, True),
        ({"kind": "attention"}, MLP, True, False),
        ({"filter": "up_proj|down_proj"}, MLP, True, True),
        ({"filter": "^mlp"}, MLP, True, False),
        ({"layers": "0-2,3"}, MLP, True, True),
        ({"layers": 3}, MLP, True, True),
        ({"layers": "4-9"}, MLP, True, False),
        ({"layers": "0-9"}, "lm_head.weight", True, False),  # it belongs to no layer
        ({"layers": "3", "kind": "mlp", "filter": "gate"}, MLP, True, False),  # all of them must match
    ],
)
def test_a_rule_matches_by_name_layer_and_kind(rule: dict[str, Any], name: str, matrix: bool, matches: bool) -> None:
    assert Rule.model_validate(rule).matches(name, matrix=matrix) is matches


def described(choice: MethodChoice, name: str, *, matrix: bool = True) -> str | None:
    method = choice.method_for(name, matrix=matrix)
    return None if method is None else method.described()


def test_the_first_rule_that_matches_decides() -> None:
    rules = read_rules([{"filter": "up", "method": "revert"}, {"kind": "mlp", "method": "none"}])
    choice = MethodChoice("wise-ft", {"alpha": 0.25}, rules)
    assert described(choice, MLP) == "revert"
    assert described(choice, MLP.replace("up", "down")) == "none"
    assert described(choice, "lm_head.weight") == choice.default.described() == "wise-ft alpha=0.25"
    assert described(choice, NORM, matrix=False) is None


def test_a_rule_without_a_method_changes_parameters_of_the_default_one() -> None:
    rules = read_rules([{"filter": "up", "parameters": {"density": 0.5}}])
    for default in (
        ("magnitude", {"density": 0.1, "weight": 0.5}),
        (get_method("magnitude", {"density": 0.1, "weight": 0.5}), None),
    ):
        choice = MethodChoice(default[0], default[1], rules)
        assert described(choice, MLP) == "magnitude weight=0.5 density=0.5"
        assert described(choice, "lm_head.weight") == "magnitude weight=0.5 density=0.1"
    made = get_method("magnitude", {"density": 0.1})
    assert MethodChoice(made).method_for(MLP, matrix=True) is made


def test_a_list_gives_a_parameter_the_value_of_the_first_filter_in_the_name() -> None:
    density = [{"filter": "up_proj", "value": 0.3}, {"filter": "mlp", "value": 0.5}, {"value": 0.7}]
    choice = MethodChoice("magnitude", {"density": density})
    assert described(choice, MLP) == "magnitude density=0.3"
    assert described(choice, MLP.replace("up", "down")) == "magnitude density=0.5"
    assert described(choice, "lm_head.weight") == "magnitude density=0.7"
    only_mlp = MethodChoice("magnitude", {"density": density[:2]})
    assert described(only_mlp, "lm_head.weight") == get_method("magnitude").described()
    star = MethodChoice("magnitude", {"density": [{"filter": "*", "value": 0.4}]})
    assert described(star, "lm_head.weight") == "magnitude density=0.4"


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [("finetuned", None), ("base", "revert"), (0.25, "wise-ft alpha=0.25"), ("0.25", "wise-ft alpha=0.25"), (1, "none"), (0, "wise-ft alpha=0.0")],
)  # fmt: skip
def test_vectors_follow_a_side_or_lie_between(vectors: str | float, expected: str | None) -> None:
    assert described(MethodChoice("dg-hard", vectors=vectors), NORM, matrix=False) == expected


@pytest.mark.parametrize("vectors", ["both", "", 1.5, -0.1, "nan"])
def test_other_vectors_are_refused(vectors: str | float) -> None:
    with pytest.raises(UsageError, match=r"^vectors: .* is invalid; give finetuned, base, or a number from 0 to 1$"):
        MethodChoice("dg-hard", vectors=vectors)


def test_methods_of_rules_are_checked_before_a_tensor_is_asked_for() -> None:
    for rule in ({"method": "tise"}, {"method": "ties", "parameters": {"density": 3}}, {"parameters": {"beta": 1}}):
        with pytest.raises(MethodError):
            MethodChoice("dg-hard", rules=read_rules([rule]))


def test_rules_are_read_from_plain_data() -> None:
    made = Rule(kind="mlp")
    assert read_rules([made, {"layers": 2}]) == (made, Rule(layers="2"))
    for given, says in (
        ({"kind": "mlp"}, "rules: expected a list of rules; got dict"),
        (
            [{"layers": "3-"}],
            r"rules.0.layers: '3-' is not a list of layers; write it like \"0-3,7\"; a rule has filter,",
        ),
        ([{}, {"filtre": "a"}], "rules.1.filtre: there is no such field; a rule has filter, layers,"),
        ([3], "rules.0: Input should be"),
    ):
        with pytest.raises(UsageError, match=says):
            read_rules(given)


def test_rules_choose_method_and_parameters_by_tensor(llama_pair: Pair, tmp_path: Path) -> None:
    rules: list[dict[str, Any]] = [
        {"kind": "embedding", "method": "none"},
        {"layers": "1", "kind": "mlp", "method": "wise-ft", "parameters": {"alpha": 0.25}},
        {"filter": r"k_proj|v_proj", "method": "revert"},
        {"layers": 1, "parameters": {"density": 0.5}},
    ]
    report = deltamend.repair(
        llama_pair.base,
        llama_pair.finetuned,
        tmp_path / "out",
        method="magnitude",
        parameters={"density": 0.1, "weight": 0.5},
        rules=rules,
    )
    methods = {tensor.name: tensor.method for tensor in report.tensors}
    assert methods["model.embed_tokens.weight"] == "none"
    assert methods["model.layers.1.mlp.up_proj.weight"] == "wise-ft alpha=0.25"
    assert methods["model.layers.1.self_attn.v_proj.weight"] == "revert"
    assert methods["model.layers.1.self_attn.q_proj.weight"] == "magnitude weight=0.5 density=0.5"
    assert methods["model.layers.0.mlp.up_proj.weight"] == "magnitude weight=0.5 density=0.1"
    assert methods["model.norm.weight"] is None
    base, finetuned, out = load(llama_pair.base), load(llama_pair.finetuned), load(tmp_path / "out")
    assert torch.equal(out["model.embed_tokens.weight"], finetuned["model.embed_tokens.weight"])
    assert torch.equal(out["model.layers.0.self_attn.k_proj.weight"], base["model.layers.0.self_attn.k_proj.weight"])
    assert json.loads((tmp_path / "out" / "deltamend.json").read_text())["options"]["rules"] == json.dumps(
        [*rules[:3], {"layers": "1", "parameters": {"density": 0.5}}]
    )
    in_memory = deltamend.repair_state_dict(
        base, finetuned, method="magnitude", parameters={"density": 0.1, "weight": 0.5}, rules=rules
    )
    assert all(torch.equal(in_memory.tensors[name], tensor) for name, tensor in out.items())


@pytest.mark.parametrize("vectors", ["finetuned", "base", 0.25, "1", 0])
def test_what_is_no_matrix_follows_whom_it_is_told(vectors: str | float, float_pair: Pair, tmp_path: Path) -> None:
    report = deltamend.repair(
        float_pair.base, float_pair.finetuned, tmp_path / "out", method="none", vectors=vectors, workers=2
    )
    base, finetuned, out = load(float_pair.base), load(float_pair.finetuned), load(tmp_path / "out")
    assert {tensor.action for tensor in report.tensors if len(tensor.shape) == 1} == (
        {"keep"} if vectors == "finetuned" else {"filter"}
    )
    share = {"finetuned": 1.0, "base": 0.0}.get(str(vectors))
    share = float(vectors) if share is None else share
    in_memory = deltamend.repair_state_dict(base, finetuned, method="none", vectors=vectors).tensors
    for name, tensor in out.items():
        assert torch.equal(in_memory[name], tensor)
        if tensor.ndim == 2 or share == 1.0:
            assert torch.equal(tensor, finetuned[name])
        elif share == 0.0:
            assert torch.equal(tensor, base[name])
        else:
            torch.testing.assert_close(tensor, base[name] + share * (finetuned[name] - base[name]))


def test_a_rule_for_norms_is_for_norms_alone(float_pair: Pair, tmp_path: Path) -> None:
    rules: list[dict[str, Any]] = [{"kind": "norm", "layers": "0", "method": "revert"}]
    deltamend.repair(float_pair.base, float_pair.finetuned, tmp_path / "out", method="none", rules=rules)
    base, finetuned, out = load(float_pair.base), load(float_pair.finetuned), load(tmp_path / "out")
    for name, tensor in out.items():
        reverted = kind_of(name) == "norm" and layer_of(name) == 0
        assert torch.equal(tensor, (base if reverted else finetuned)[name])
