"""The options of a repair: what is refused, and in which words for Python and for the command line."""

from __future__ import annotations

from typing import Any

import pytest

from deltamend.cli.options import spelled_on_command_line
from deltamend.errors import UsageError
from deltamend.inputs.open_models import open_pair
from deltamend.methods.registry import get_method
from deltamend.repairing.options import (
    PairOptions,
    Recommendation,
    RepairOptions,
    make_options,
    opened_pair,
    pair_of,
    with_recommendation,
)
from tests.conftest import Pair


def test_options_that_are_none_are_not_given() -> None:
    options = make_options(RepairOptions, {"method": None, "vectors": None, "include": "mlp"})
    assert options == RepairOptions(include="mlp")
    assert options.model_fields_set == {"include"}
    assert (options.method, options.vectors, options.out_dtype) == ("dg-hard", "finetuned", None)


@pytest.mark.parametrize(
    ("kind", "given", "python", "shell"),
    [
        (RepairOptions, {"methd": "ties"}, "methd: this option does not exist; the options are include,", "methd: this"),
        (PairOptions, {"method": "ties"}, "method: this option does not exist; the options are include,", "method: this"),
        (RepairOptions, {"out_dtype": "int3"}, "out_dtype: 'int3' is not a data type", "--out-dtype: 'int3'"),
        (RepairOptions, {"output": "lora"}, "output: 'lora' is not valid; expected", "--as: 'lora' is not valid"),
        (RepairOptions, {"rounding": "up"}, "rounding: 'up' is not valid; expected 'nearest'", "--rounding: 'up'"),
        (RepairOptions, {"method": 3}, "method: Input should be a valid string", "--method: Input"),
        (RepairOptions, {"rules": 3}, "rules: expected a list of rules; got int", "rules: expected"),
        (RepairOptions, {"rules": [{"kind": "nrom"}]}, "rules.0.kind: 'nrom' is not valid", "rules.0.kind:"),
        (
            RepairOptions,
            {"output": "adapter", "max_shard_size": "1GB"},
            "max_shard_size: an adapter is a single file; leave this option out",
            "--max-shard-size: an adapter is a single file",
        ),
        (
            RepairOptions,
            {"output": "adapter", "rounding": "stochastic"},
            "rounding: an adapter holds factors of the update, not rounded weights; leave this option out",
            "--rounding: an adapter holds",
        ),
    ],
)  # fmt: skip
def test_what_is_invalid_is_named(kind: type[PairOptions], given: dict[str, Any], python: str, shell: str) -> None:
    with pytest.raises(UsageError) as raised:
        make_options(kind, given)
    assert str(raised.value).startswith(python)
    assert raised.value.spelled(spelled_on_command_line).startswith(shell)
    assert "\n" not in str(raised.value)


def test_aliases_of_yaml_are_not_arguments() -> None:
    assert RepairOptions.model_validate({"merge_method": "ties", "as": "adapter"}) == RepairOptions(
        method="ties", output="adapter"
    )
    with pytest.raises(UsageError, match="merge_method: this option does not exist"):
        make_options(RepairOptions, {"merge_method": "ties"})


def test_a_method_may_be_given_by_name_or_made() -> None:
    made = get_method("wise-ft", {"alpha": 0.25})
    assert make_options(RepairOptions, {"method": made}).method is made
    assert make_options(RepairOptions, {"method": made}).method_name == "wise-ft"
    assert make_options(RepairOptions, {"method": "ties"}).method_name == "ties"
    assert (RepairOptions().dtype_name, RepairOptions(out_dtype="bf16").dtype_name) == (None, "BF16")


def test_the_recommendation_does_not_replace_vectors_that_were_given() -> None:
    advice = Recommendation("wise-ft", {"alpha": 0.5}, 0.5, "because")
    chosen = with_recommendation(make_options(RepairOptions, {"method": "auto"}), advice)
    assert (chosen.method, chosen.parameters, chosen.vectors) == ("wise-ft", {"alpha": 0.5}, 0.5)
    given = make_options(RepairOptions, {"method": "auto", "vectors": "finetuned"})
    assert with_recommendation(given, advice).vectors == "finetuned"


def test_an_open_pair_has_its_own_models_and_selection(llama_pair: Pair) -> None:
    with open_pair(llama_pair.base, llama_pair.finetuned, include="mlp") as pair:
        assert pair_of(pair, None, RepairOptions(method="ties")) is pair
        for finetuned, options in ((llama_pair.finetuned, PairOptions()), (None, PairOptions(exclude="attn"))):
            with pytest.raises(
                UsageError, match="an open pair already has its FINETUNED and its selection of matrices"
            ):
                pair_of(pair, finetuned, options)
    with pytest.raises(
        UsageError, match="FINETUNED is missing; give both checkpoints, or a pair opened by `open_pair`"
    ):
        pair_of(llama_pair.base, None, PairOptions())


def is_open(pair: Any) -> bool:
    checkpoint = pair.finetuned
    tensor = next(iter(checkpoint.tensors.values()))
    try:
        checkpoint.read_into(tensor, 0, memoryview(bytearray(2)))
    except (OSError, ValueError, KeyError):
        return False
    return True


def test_only_a_pair_that_was_opened_here_is_closed_here(llama_pair: Pair) -> None:
    with open_pair(llama_pair.base, llama_pair.finetuned) as pair:
        with opened_pair(pair, None, PairOptions()) as same:
            assert same is pair
        assert is_open(pair)
    assert not is_open(pair)
    with opened_pair(llama_pair.base, llama_pair.finetuned, PairOptions(include="mlp")) as own:
        assert is_open(own)
        assert {one.action for one in own.pairing.pairs if "self_attn" in one.name} == {"keep"}
    assert not is_open(own)
