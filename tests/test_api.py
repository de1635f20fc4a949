"""What is open already is neither opened nor planned again: plans and pairs in place of folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import deltamend
from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.errors import CheckpointError, MethodError, UsageError
from deltamend.inputs import open_models
from deltamend.inputs.distributed_checkpoints import folders as folders_of_runs
from deltamend.repairing import run
from deltamend.repairing.options import Recommendation
from tests.conftest import Pair
from tests.repairing.test_run import without_seconds

pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were opened, one after another."""
    folders: list[Path] = []
    really_open = folders_of_runs.open_any_folder

    def counting(path: Path) -> Checkpoint:
        folders.append(path)
        return really_open(path)

    monkeypatch.setattr(open_models, "open_any_folder", counting)
    return folders


def is_open(checkpoint: Checkpoint) -> bool:
    tensor = next(iter(checkpoint.tensors.values()))
    try:
        checkpoint.read_into(tensor, 0, memoryview(bytearray(2)))
    except (OSError, ValueError, KeyError):
        return False
    return True


def test_one_plan_is_looked_at_diagnosed_compared_and_carried_out(
    llama_pair: Pair, tmp_path: Path, opened: list[Path]
) -> None:
    with deltamend.plan_repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", include="q_proj") as plan:
        assert opened == [llama_pair.base, llama_pair.finetuned]
        diagnosis = deltamend.diagnose(plan.pair)
        comparison = deltamend.compare(plan.pair, methods=["dg-hard", "none"])
        report = deltamend.repair(plan, workers=1)
        assert len(opened) == 2
        assert is_open(plan.base)
        assert not deltamend.repair(plan, resume=True).written
    assert not is_open(plan.base)
    assert not is_open(plan.finetuned)
    repaired = [tensor.name for tensor in report.tensors if tensor.action == "filter"]
    assert [matrix.name for matrix in diagnosis.matrices] == repaired
    assert list(dict.fromkeys(row.tensor for row in comparison.tensors)) == repaired
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "again", include="q_proj")
    assert without_seconds(tmp_path / "again") == without_seconds(tmp_path / "out")


@pytest.mark.slow
def test_an_open_pair_gives_what_the_folders_give(llama_pair: Pair, opened: list[Path]) -> None:
    folders = (llama_pair.base, llama_pair.finetuned)
    with deltamend.open_pair(*folders, include="k_proj") as pair:
        diagnosis = deltamend.diagnose(pair)
        comparison = deltamend.compare(pair, methods=["ties"])
        assert len(opened) == 2
        assert is_open(pair.base)
    expected = deltamend.diagnose(*folders, include="k_proj")
    assert diagnosis.model_copy(update={"seconds": 0}) == expected.model_copy(update={"seconds": 0})
    again = deltamend.compare(*folders, methods=["ties"], include="k_proj")
    assert [row.model_copy(update={"seconds": 0}) for row in comparison.tensors] == [
        row.model_copy(update={"seconds": 0}) for row in again.tensors
    ]


def test_a_plan_closes_the_pair_and_a_plan_that_fails_leaves_it_open(llama_pair: Pair, tmp_path: Path) -> None:
    with deltamend.open_pair(llama_pair.base, llama_pair.finetuned) as pair:
        with pytest.raises(MethodError, match="did you mean 'ties'"):
            deltamend.plan_repair(pair, out=tmp_path / "out", method="tise")
        assert is_open(pair.base)
        with deltamend.plan_repair(pair, out=tmp_path / "out", method="ties") as plan:
            assert plan.pair is pair
        assert not is_open(pair.base)


def test_folders_of_a_plan_that_fails_are_closed(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[object] = []
    close = deltamend.OpenPair.close

    def closing(pair: deltamend.OpenPair) -> None:
        closed.append(pair)
        close(pair)

    monkeypatch.setattr(deltamend.OpenPair, "close", closing)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(deltamend.OutputError):
        deltamend.plan_repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out")
    assert len(closed) == 1


def test_arguments_that_a_plan_or_pair_already_has_are_refused(llama_pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with deltamend.plan_repair(llama_pair.base, llama_pair.finetuned, out) as plan:
        refused: tuple[dict[str, Any], ...] = ({"out": out}, {"finetuned": llama_pair.finetuned}, {"method": "ties"})
        for given in refused:
            with pytest.raises(UsageError, match="a plan already has its FINETUNED, OUT and options; leave these"):
                deltamend.repair(plan, **given)
        with pytest.raises(UsageError, match="an open pair already has its FINETUNED and its selection"):
            deltamend.compare(plan.pair, include="mlp")
    with pytest.raises(
        UsageError, match="FINETUNED or OUT is missing; give BASE, FINETUNED and OUT, or a plan made by"
    ):
        deltamend.repair(llama_pair.base, llama_pair.finetuned)
    with pytest.raises(UsageError, match="OUT is missing; name the folder to write"):
        deltamend.plan_repair(llama_pair.base, llama_pair.finetuned)
    with pytest.raises(UsageError, match="FINETUNED is missing"):
        deltamend.plan_repair(llama_pair.base, out=out)
    assert not out.exists()


def test_auto_asks_for_the_method_and_keeps_vectors_that_were_given(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def recommend(*models: str, **_: object) -> Recommendation:
        asked.extend(models)
        return Recommendation("wise-ft", {"alpha": 0.25}, 0.25, "it is a test")

    monkeypatch.setattr(deltamend._api, "recommend", recommend)
    report = deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "auto", method="auto", vectors="base")
    assert asked == [str(llama_pair.base), str(llama_pair.finetuned)]
    assert report.recommendation is not None
    assert report.recommendation.reason == "it is a test"
    deltamend.repair(
        llama_pair.base, llama_pair.finetuned, tmp_path / "named", method="wise-ft", parameters={"alpha": 0.25},
        vectors="base",
    )  # fmt: skip
    assert without_seconds(tmp_path / "auto") == without_seconds(tmp_path / "named")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"parameters": {"alpha": 1}}, 'method="auto": the method and its parameters are chosen automatically'),
        ({"rules": [{"method": "none"}]}, "leave out parameters and rules, or name a method"),
        (
            {"output": "adapter"},
            'output="adapter": the methods that method="auto" chooses from keep a low-rank update only where FINETUNED is given',
        ),
    ],
)
def test_auto_refuses_in_the_words_of_python(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr(deltamend._api, "recommend", lambda *_, **__: pytest.fail("the base was run"))
    with pytest.raises(UsageError, match=says):
        deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "o", method="auto", **options)


def test_inputs_that_change_between_plan_and_run_are_noticed(own_pair: Pair, tmp_path: Path) -> None:
    with deltamend.plan_repair(own_pair.base, own_pair.finetuned, tmp_path / "out") as plan:
        (own_pair.base / "model.safetensors").touch()
        with pytest.raises(CheckpointError, match="changed during the run; start again"):
            run.run_plan(plan)
    assert not (tmp_path / "out").exists()
