from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deltamend import repair
from deltamend.errors import DeltamendError
from deltamend.evaluation.backend import best_device
from deltamend.study.base_model import Workplace, prepare_base, provenance
from deltamend.study.cell import evaluate_base, run_cell, tuned_folder
from deltamend.study.config import Study
from deltamend.study.exam import evaluate_on_exam
from deltamend.study.fine_tuning import finetune
from deltamend.study.records import (
    FORM,
    OWN_ANSWERS,
    TARGET,
    TARGET_LIKELIHOOD,
    BaseRecord,
    CellRecord,
    FinetuneFacts,
    base_file,
    cell_file,
    read_record,
)
from tests.study.cell_runs import run, scores

Asked = list[str]


@pytest.fixture
def sat(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Names of the models that are asked from here on."""
    names: Asked = []

    def watched(model: Path, *arguments: Any, **options: Any) -> Any:
        names.append(model.name)
        return evaluate_on_exam(model, *arguments, **options)

    monkeypatch.setattr("deltamend.study.cell.evaluate_on_exam", watched)
    return names


@pytest.mark.slow
def test_a_cell_asks_every_model_and_a_second_run_asks_none(
    study: Study, tmp_path: Path, data: Path, sat: Asked
) -> None:
    record = run(study, tmp_path / "out", data)
    assert list(record.models) == ["finetuned", "dg-hard", "null-space", "wise-ft-0.5"]
    own = {TARGET, TARGET_LIKELIHOOD, OWN_ANSWERS, FORM, "arc"}
    assert record.models["dg-hard"].evaluation.tasks.keys() == own
    assert record.models["wise-ft-0.5"].evaluation.tasks.keys() == own | {"xstest_safe"}
    assert record.finetune.last_loss < record.finetune.first_loss
    facts = record.models["wise-ft-0.5"].facts
    assert facts is not None
    assert facts.kept_energy == pytest.approx(0.25, rel=1e-3)
    assert facts.realised_energy == pytest.approx(0.25, rel=1e-3)
    assert record.models["finetuned"].facts is None
    kept = {
        task: sum(item.response is not None for item in found.items)
        for task, found in record.models["wise-ft-0.5"].evaluation.tasks.items()
    }
    assert {task for task, count in kept.items() if count} == {TARGET, FORM}
    assert set(kept.values()) == {0, 2}  # and none to the prompts of a safety benchmark
    assert len(sat) == 4
    assert run(study, tmp_path / "out", data) == record
    assert len(sat) == 4
    assert not any((tmp_path / "out" / "models").glob("tiny__*"))
    assert not any((tmp_path / "out").glob(".cell-*"))
    assert scores(run(study, tmp_path / "again", data)) == scores(record)


@pytest.mark.slow
def test_a_cell_goes_on_where_it_stopped_and_asks_only_what_is_new(
    study: Study, tmp_path: Path, data: Path, sat: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def fails(*_arguments: Any, **_options: Any) -> Any:
        raise DeltamendError("the disk is full")

    monkeypatch.setattr("deltamend.study.cell.repair", fails)
    with pytest.raises(DeltamendError, match="the disk is full"):
        run(study, out, data)
    monkeypatch.setattr("deltamend.study.cell.repair", repair)
    record = run(study, out, data)
    assert [name.partition("__")[0] for name in sat] == ["tiny", "dg-hard", "null-space", "wise-ft-0.5"]
    changed = study.model_copy(
        update={"repairs": (*study.repairs[:2], study.repairs[2].model_copy(update={"parameters": {"alpha": 0.3}}))}
    )
    again = run(changed, out, data)
    assert sat[4:] == ["wise-ft-0.5"]
    assert again.models["dg-hard"] == record.models["dg-hard"]
    assert again.models["wise-ft-0.5"] != record.models["wise-ft-0.5"]
    fewer = study.model_copy(update={"repairs": study.repairs[:1]})
    assert list(run(fewer, out, data).models) == ["finetuned", "dg-hard", "null-space", "wise-ft-0.5"], (
        "scores are never dropped"
    )


@pytest.mark.slow
def test_a_finetuned_model_goes_with_its_cell_and_is_made_again_where_its_facts_are_cut_off(
    study: Study, tmp_path: Path, data: Path, sat: Asked
) -> None:
    kept = study.model_copy(update={"keep_finetuned": True})
    run(kept, tmp_path, data)
    (facts,) = (tmp_path / "models").glob("tiny__*.json")
    facts.write_bytes(facts.read_bytes()[:20])
    other = study.repairs[2].model_copy(update={"name": "other", "parameters": {"alpha": 0.3}})
    more = {"repairs": (*study.repairs, other)}
    record = run(kept.model_copy(update=more), tmp_path, data)
    assert sat[4:] == ["other"]
    assert FinetuneFacts.model_validate_json(facts.read_bytes()).model_hash == record.finetune.model_hash
    run(study.model_copy(update=more), tmp_path, data)  # as after a kill between the last record and the deletion
    assert len(sat) == 5
    assert not any((tmp_path / "models").glob("*tiny__*"))


@pytest.mark.slow
def test_another_way_to_fine_tune_is_another_cell(study: Study, tmp_path: Path, data: Path, sat: Asked) -> None:
    first = run(study, tmp_path, data)
    regime = study.regimes[0].model_copy(update={"lr": 0.02})
    second = run(study.model_copy(update={"regimes": (regime,)}), tmp_path, data)
    assert len(sat) == 8
    assert second.finetune.model_hash != first.finetune.model_hash


@pytest.mark.slow
def test_regimes_that_differ_in_what_is_stored_share_one_training(
    study: Study, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def watched(*arguments: Any, **options: Any) -> FinetuneFacts:
        trained.append(arguments[3].name)
        return finetune(*arguments, **options)

    monkeypatch.setattr("deltamend.study.cell.finetune", watched)
    lora = study.regimes[0].model_copy(update={"name": "lora", "lora_rank": 2, "compute": "float32"})
    rounded = lora.model_copy(update={"name": "lora-as-bf16", "stored": "bfloat16"})
    both = study.model_copy(update={"regimes": (lora, rounded), "keep_finetuned": True, "repairs": study.repairs[:1]})
    place = Workplace(both, tmp_path, data)
    for cell in both.cells():
        run_cell(place, cell, lambda _what, _share: None)
    first, second = (read_record(cell_file(tmp_path, cell.name), CellRecord) for cell in both.cells())
    assert len(trained) == 1
    assert first is not None
    assert second is not None
    assert first.finetune.model_hash != second.finetune.model_hash
    assert first.finetune.adapter == second.finetune.adapter
    assert first.finetune.adapter is not None
    assert first.finetune.adapter.distance < 1e-5
    folders = tuned_folder(place, both.cells()[1], prepare_base(place, both.models[0]))
    stored, whole = (load_file(one / "model.safetensors") for one in (folders.model, folders.trained))
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored.values())
    assert all(torch.equal(stored[name], whole[name].bfloat16()) for name in whole)


def test_a_base_may_be_read_from_a_local_folder_in_the_dtype_of_its_makers(
    study: Study, tiny_model: Path, tmp_path: Path
) -> None:
    entry = study.models[0].model_copy(
        update={"source": "org/on-the-hub", "local": str(tiny_model), "dtype": "bfloat16"}
    )
    base = prepare_base(Workplace(study, tmp_path, None), entry)
    assert {tensor.dtype for tensor in load_file(base / "model.safetensors").values()} == {torch.bfloat16}
    assert provenance(entry) == f"org/on-the-hub, read from {tiny_model.name}"


@pytest.mark.slow
def test_the_base_is_asked_once_for_each_target(study: Study, tmp_path: Path, data: Path, sat: Asked) -> None:
    place = Workplace(study, tmp_path, data)
    for _ in range(2):
        evaluate_base(place, study.models[0], study.targets[0], lambda _what, _share: None)
    assert len(sat) == 1
    found = read_record(base_file(tmp_path, "tiny", "sums", best_device()), BaseRecord)
    assert found is not None
    assert "xstest_safe" in found.evaluation.tasks
