"""A plan is decided without reading a weight, and two plans are the same where they would write the same."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from deltamend.errors import CheckpointError, UsageError
from deltamend.inputs.open_models import open_pair
from deltamend.methods.registry import get_method
from deltamend.repairing.options import Recommendation, RepairOptions, make_options
from deltamend.repairing.plan import RepairPlan, assign_methods, is_shared_vector, plan_repair
from deltamend.repairing.rules import MethodChoice
from tests.conftest import Pair
from tests.matrices.made_up import pair_of_shape


def planned(pair: Pair, out: Path, selection: dict[str, Any] | None = None, **options: Any) -> RepairPlan:
    opened = open_pair(pair.base, pair.finetuned, **(selection or {}))
    return plan_repair(opened, out, make_options(RepairOptions, options))


def test_a_plan_reads_no_weight_and_writes_nothing(own_pair: Pair, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for file in (*own_pair.base.glob("*.safetensors"), *own_pair.finetuned.glob("*.safetensors")):
        length = int.from_bytes(file.read_bytes()[:8], "little")
        with file.open("r+b") as opened:  # nothing but zeros after the header
            opened.seek(8 + length)
            opened.write(bytes(file.stat().st_size - 8 - length))
    with planned(own_pair, tmp_path / "out", method="dg-hard") as plan:
        assert len(plan.methods) == 16
        assert json.loads(json.dumps(plan.described(3)))["workers"] == 3
        assert plan.bytes_to_write > 200_000
    assert sorted(tmp_path.rglob("*")) == before


def test_the_hash_is_that_of_what_will_be_written(own_pair: Pair, tmp_path: Path) -> None:
    def hash_of(pair: Pair = own_pair, **options: Any) -> str:
        with planned(pair, tmp_path / "out", options.pop("selection", None), **options) as plan:
            return plan.sha256

    first = hash_of()
    assert hash_of(method="dg-hard", vectors="finetuned") == first
    shutil.copytree(own_pair.base, tmp_path / "elsewhere" / "base")
    shutil.copytree(own_pair.finetuned, tmp_path / "elsewhere" / "finetuned")
    assert hash_of(Pair(tmp_path / "elsewhere" / "base", tmp_path / "elsewhere" / "finetuned")) == first
    others = [
        hash_of(method="ties"),
        hash_of(vectors=0.5),
        hash_of(out_dtype="fp32"),
        hash_of(max_shard_size="1GB"),
        hash_of(rounding="stochastic"),
        hash_of(output="adapter"),
        hash_of(rules=[{"kind": "mlp", "method": "none"}]),
        hash_of(selection={"exclude": "mlp"}),
    ]
    (own_pair.finetuned / "tokenizer.json").write_text("{}")
    others.append(hash_of())
    assert len({first, *others}) == 1 + len(others)


def test_resume_is_of_these_very_files(own_pair: Pair, tmp_path: Path) -> None:
    with planned(own_pair, tmp_path / "out") as plan:
        before = plan.sha256, plan.resume_key
    os.utime(own_pair.base / "model.safetensors", ns=(1, 1))
    with planned(own_pair, tmp_path / "out") as plan:
        assert plan.sha256 == before[0]
        assert plan.resume_key != before[1]


def test_the_selection_is_that_of_the_pair(own_pair: Pair, tmp_path: Path) -> None:
    with planned(own_pair, tmp_path / "out", {"exclude": "mlp"}, include="attn") as plan:
        assert (plan.options.include, plan.options.exclude) == (None, "mlp")
        assert plan.described_options["exclude"] == "mlp"


def test_files_of_methods_may_not_change(own_pair: Pair, tmp_path: Path) -> None:
    squares = tmp_path / "squares.safetensors"
    shutil.copy(own_pair.base / "model.safetensors", squares)
    step = {"method": "fisher", "fisher": str(squares)}
    with planned(own_pair, tmp_path / "out", method="hybrid", parameters={"steps": [step]}) as plan:
        assert list(plan.method_files) == [squares]
        assert squares in plan.inputs
        plan.check_method_files()
        os.utime(squares, ns=(1, 1))
        with pytest.raises(CheckpointError, match=r"squares\.safetensors: changed during the run; start again"):
            plan.check_method_files()
        squares.unlink()
        with pytest.raises(CheckpointError, match="changed during the run"):
            plan.check_method_files()


def test_auto_asks_once_and_last(own_pair: Pair, tmp_path: Path) -> None:
    asked: list[str] = []

    def recommend() -> Recommendation:
        asked.append("auto")
        return Recommendation("wise-ft", {"alpha": 0.5}, 0.5, "because")

    auto = make_options(RepairOptions, {"method": "auto"})
    with open_pair(own_pair.base, own_pair.finetuned) as pair:
        plan = plan_repair(pair, tmp_path / "out", auto, recommend=recommend)
        assert (plan.method.described(), plan.options.vectors) == ("wise-ft", 0.5)
        assert plan.recommendation is not None
        with pytest.raises(
            UsageError, match='method="auto": no method can be recommended in this place; name a method'
        ):
            plan_repair(pair, tmp_path / "out", auto)
        wrong = make_options(RepairOptions, {"method": "auto", "rules": [{"method": "tise"}]})
        with pytest.raises(UsageError, match="tise"):
            plan_repair(pair, tmp_path / "out", wrong, recommend=recommend)
        plan_repair(pair, tmp_path / "out", make_options(RepairOptions, {}), recommend=recommend)
    assert asked == ["auto"]


def test_an_adapter_leaves_the_config_out(own_pair: Pair, tmp_path: Path) -> None:
    (own_pair.finetuned / "adapter_config.json").write_text("{}")
    with planned(own_pair, tmp_path / "out", output="adapter") as plan:
        assert {"config.json", "adapter_config.json"} <= {file.name for file in plan.left_out}
        assert not {"config.json", "adapter_config.json"} & {file.name for file in plan.sidecars}
        assert "tokenizer.json" in {file.name for file in plan.sidecars}


def test_every_matrix_and_chosen_vector_gets_its_method(own_pair: Pair) -> None:
    with open_pair(own_pair.base, own_pair.finetuned, exclude="mlp") as pair:
        pairing, methods = assign_methods(pair.pairing, MethodChoice("dg-hard", vectors="base"))
    actions = {one.name: one.action for one in pairing.pairs}
    assert {name for name, action in actions.items() if action == "filter"} == set(methods)
    assert methods["model.norm.weight"].name == "revert"
    assert methods["lm_head.weight"] == get_method("dg-hard")
    assert not any("mlp" in name for name in methods)


def test_a_vector_is_shared_where_both_sides_can_be_added() -> None:
    assert is_shared_vector(pair_of_shape("bias", (4,)))
    assert not is_shared_vector(pair_of_shape("matrix", (4, 4)))
    assert not is_shared_vector(pair_of_shape("empty", (0,)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"include": "atention"},
            r"include 'atention': nothing is left to repair; a matrix is called, for example, 'model\.embed",
        ),
        ({"exclude": "."}, r"exclude '\.': nothing is left to repair"),
        ({"include": "norm", "exclude": "zzz"}, r"include 'norm' and exclude 'zzz': nothing is left to repair"),
    ],
)
def test_a_selection_that_leaves_nothing_is_refused(
    llama_pair: Pair, tmp_path: Path, given: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        planned(llama_pair, tmp_path / "out", given)
