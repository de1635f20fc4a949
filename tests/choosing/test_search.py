"""Tuning, with an evaluation that reads what a repair did off the weights."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from deltamend.choosing.search import Evaluate, _Search, halves, tune
from deltamend.cli.options import parameters_of
from deltamend.errors import EvaluationError, UsageError
from deltamend.evaluation.record import Evaluation
from deltamend.methods.hybrid import Hybrid
from deltamend.methods.registry import get_method
from deltamend.scoring.settings import Settings
from tests.conftest import Pair, Printed
from tests.scoring.records import made_up_cell, record, task

SETTINGS = Settings(draws=200)
ITEMS = 120


def weights(folder: Path) -> torch.Tensor:
    parts = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            parts += [(name, file.get_tensor(name).double().flatten()) for name in file.keys()]  # noqa: SIM118
    return torch.cat([values for _, values in sorted(parts)])


def evaluator(pair: Pair, seen: list[Path] | None = None) -> Evaluate:
    """Scores by how much of the update is left: the target is learnt by half of it, the damage is done by the rest."""
    base = weights(pair.base)
    delta = weights(pair.finetuned) - base
    thresholds = (np.arange(ITEMS) + 0.5) / ITEMS

    def evaluate(folder: Path) -> Evaluation:
        if seen is not None:
            seen.append(folder)
        left = float((weights(folder) - base) @ delta / (delta @ delta))
        harm, gain = 0.5 * max(0.0, left - 0.4), min(1.0, left / 0.5)
        arc, sums = (thresholds > 0.3 + harm).astype(float), (thresholds < 0.1 + 0.7 * gain).astype(float)
        return record({"arc": task(arc), "sums": task(sums)}, model=folder.name)

    return evaluate


@pytest.mark.slow
def test_the_best_strength_is_found_and_the_rest_is_not_tried(float_pair: Pair, tmp_path: Path) -> None:
    seen: list[Path] = []
    found = tune(
        float_pair.base,
        float_pair.finetuned,
        evaluator(float_pair, seen),
        target="sums",
        methods=["task-arithmetic"],
        strengths=(1.0, 0.75, 0.5, 0.3, 0.1),
        settings=SETTINGS,
        work=tmp_path,
    )
    assert found.chosen == "task-arithmetic × 0.5"
    assert [trial.strength for trial in found.trials] == [1.0, 0.75, 0.5, 0.3]
    assert found.stopped == ("task-arithmetic × 0.1",)
    assert len(seen) == 2 + 4
    assert list(tmp_path.iterdir()) == []
    combined = [trial.combined or 0.0 for trial in found.trials]
    assert combined[0] == 0
    assert max(combined) == combined[2]


@pytest.mark.slow
def test_the_report_is_on_the_items_that_did_not_choose(float_pair: Pair) -> None:
    found = tune(
        float_pair.base,
        float_pair.finetuned,
        evaluator(float_pair),
        target="sums",
        methods=["task-arithmetic"],
        strengths=(0.7, 0.5),
        settings=SETTINGS,
    )
    sizes = [next(iter(score.benchmarks)).items for score in (found.choosing, found.reporting)]
    assert sum(sizes) == ITEMS
    assert found.reporting.methods[found.chosen].combined.low is not None
    assert set(found.front) <= set(found.reporting.methods)
    assert found.reporting.methods["none"].combined.value == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dg-hard", "magnitude"])
def test_the_command_makes_the_model_that_was_chosen(
    method: str, llama_pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Printed]
) -> None:
    made: dict[str, torch.Tensor] = {}
    judge = evaluator(llama_pair)

    def evaluate(folder: Path) -> Evaluation:
        made[str(len(made))] = weights(folder)
        return judge(folder)

    found = tune(
        llama_pair.base,
        llama_pair.finetuned,
        evaluate,
        target="sums",
        methods=[method],
        strengths=(0.8, 0.5),
        patience=2,
        settings=SETTINGS,
    )
    chosen = 2 + [trial.name for trial in found.trials].index(found.chosen)
    words = [str(tmp_path / "out") if word == "OUT" else word for word in shlex.split(found.command)[1:]]
    printed = deltamend_cli(*words)
    assert printed.code == 0, printed.err
    again = weights(tmp_path / "out")
    difference = torch.linalg.vector_norm(again - made[str(chosen)]) / torch.linalg.vector_norm(again)
    assert difference < 1e-5


def test_the_command_names_files_by_their_paths(float_pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "a file"
    masks = {name: torch.ones(1, dtype=torch.uint8) for name in ("a", "b")}
    save_file(masks, file)
    graft = get_method("graft", {"mask": file, "scope": "tensor"})
    null_space = get_method("null-space", {"activations": file, "share": 0.5})
    search = _Search(float_pair.base, float_pair.finetuned, evaluator(float_pair), "sums", SETTINGS)
    for method in (graft, null_space, get_method("della", {"density": 0.3})):
        for strength in (1.0, 0.5):
            first, *second = search._command(method, strength).split(" && ")
            words = shlex.split(first)
            name = words[words.index("--method") + 1]
            parameters = parameters_of([words[at + 1] for at, word in enumerate(words) if word == "--set"])
            made = get_method(name, parameters)
            assert (name == "hybrid") == (method is graft and strength != 1.0)
            assert (made.methods[0] if isinstance(made, Hybrid) else made) == method
            assert bool(second) == (strength != 1.0 and name != "hybrid")
            if second:
                assert words[4:5] == ["FILTERED"]
                assert second[0].endswith("--set weight=0.5 --out-dtype fp32")


@pytest.mark.slow
def test_the_two_commands_make_the_model_that_was_chosen(
    float_pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Printed]
) -> None:
    made: list[torch.Tensor] = []
    judge = evaluator(float_pair)

    def evaluate(folder: Path) -> Evaluation:
        made.append(weights(folder))
        return judge(folder)

    found = tune(
        float_pair.base,
        float_pair.finetuned,
        evaluate,
        target="sums",
        methods=[get_method("della", {"density": 0.3, "epsilon": 0.05})],
        strengths=(0.5,),
        settings=SETTINGS,
    )
    command = found.command.replace("FILTERED", str(tmp_path / "filtered")).replace("OUT", str(tmp_path / "out"))
    for one in command.split(" && "):
        printed = deltamend_cli(*shlex.split(one)[1:])
        assert printed.code == 0, printed.err
    again = weights(tmp_path / "out")
    assert torch.linalg.vector_norm(again - made[2]) / torch.linalg.vector_norm(again) < 1e-6


def test_a_target_that_is_not_evaluated_stops_it_after_the_base(float_pair: Pair) -> None:
    seen: list[Path] = []
    with pytest.raises(UsageError, match="target 'prods': is not one of the tasks; they are arc, sums"):
        tune(float_pair.base, float_pair.finetuned, evaluator(float_pair, seen), target="prods")
    assert seen == [float_pair.base]


def test_halves_follow_from_ids_alone() -> None:
    whole = made_up_cell()["base"]
    first, second = halves(whole)
    for name, own in whole.tasks.items():
        ids = [{item.id for item in half.tasks[name].items} for half in (first, second)]
        assert ids[0] | ids[1] == {item.id for item in own.items}
        assert not ids[0] & ids[1]
        assert 0.3 < len(ids[0]) / len(own.items) < 0.7
    other = halves(made_up_cell(seed=5)["good"])[0]
    assert [item.id for item in other.tasks["arc"].items] == [item.id for item in first.tasks["arc"].items]
    with pytest.raises(
        EvaluationError, match="task 'one': 1 items are too few to split into halves; evaluate more items"
    ):
        halves(record({"one": task([1.0])}))


def test_without_damage_there_is_nothing_to_choose_by(float_pair: Pair) -> None:
    def unmoved(folder: Path) -> Evaluation:
        learnt = 0.0 if folder == float_pair.base else 1.0
        return record({"arc": task([1.0, 0.0] * 30), "sums": task([learnt] * 60)})

    with pytest.raises(EvaluationError, match="damaged no benchmark"):
        tune(float_pair.base, float_pair.finetuned, unmoved, target="sums", methods=["dg-hard"], settings=SETTINGS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"methods": ["none"]}, "always evaluated"),
        ({"methods": ["dg-hard", get_method("dg-hard")]}, "give at least one method, and each method only once"),
        ({"methods": []}, "give at least one method, and each method only once"),
        ({"strengths": (1.5,)}, "above 0 and up to 1"),
        ({"strengths": ()}, "above 0 and up to 1"),
        ({"patience": 0}, "patience"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_runs(options: dict[str, object], says: str) -> None:
    def never(folder: Path) -> Evaluation:
        raise AssertionError(folder)

    with pytest.raises(UsageError, match=says):
        tune("base", "finetuned", never, target="sums", **options)  # type: ignore[arg-type]
