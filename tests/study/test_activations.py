"""The activations of fine-tuned models that repairs of a study go by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from deltamend.calibration.activations import write_activations
from deltamend.study.config import Study
from deltamend.study.record_keys import model_keys
from deltamend.study.repair_config import Repair
from tests.study.cell_runs import run


def two_sided(texts: str) -> Repair:
    parameters = {"activations": "own", "target": 0.4, "target_activations": texts}
    return Repair.model_validate({"name": f"two-sided-{texts}", "method": "two-sided", "parameters": parameters})


@pytest.mark.slow
def test_a_finetuned_models_activations_are_over_its_own_texts_or_over_its_training_examples(
    study: Study, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, list[str] | None, bool]] = []
    files: dict[str, Any] = {}

    def watched(model: Path, out: Path, **options: Any) -> int:
        texts = options.get("texts")
        read = None if texts is None else Path(texts).read_text(encoding="utf-8").splitlines()
        made.append((model.name.partition("__")[0], read, options.get("chat", False)))
        count = write_activations(model, out, **options)
        files[out.name] = load_file(out)
        return count

    monkeypatch.setattr("deltamend.study.activations.write_activations", watched)
    asked = study.model_copy(update={"repairs": (two_sided("own"), two_sided("training"))})
    record = run(asked, tmp_path, data)
    assert list(record.models) == ["finetuned", "two-sided-own", "two-sided-training"]
    base, own, training = made
    assert base == (base[0], None, False)
    assert own == ("tiny", None, False)
    assert training[0] == "tiny"
    assert training[2]
    assert training[1] is not None
    assert len(training[1]) == 32
    assert '{"prompt": "0+0?", "response": "0"}' in training[1]
    first, second, third = files.values()
    assert first.keys() == second.keys() == third.keys()
    assert any((first[name] != second[name]).any() for name in first if first[name].shape == second[name].shape)
    assert not any((tmp_path / "models").glob("tiny__*"))


def test_what_a_finetuned_model_reads_decides_what_is_to_be_asked() -> None:
    own, training = two_sided("own"), two_sided("training")
    assert (own.target_texts, training.target_texts) == ("own", "training")
    assert own.what_decides() == training.what_decides()
    without = Repair.model_validate({"name": "two-sided", "method": "two-sided", "parameters": {"activations": "own"}})
    assert without.target_texts is None
    assert without.what_decides() != own.what_decides()


def test_how_much_a_finetuned_model_writes_decides_what_is_to_be_asked(study: Study) -> None:
    cell = study.cells()[0]
    plain = two_sided("own")
    as_the_study, short = ({"samples": 3, "tokens": 6}, {"samples": 2, "tokens": 4})

    def key(finetuned_texts: dict[str, int] | None) -> str:
        repair = Repair.model_validate({**plain.model_dump(), "finetuned_texts": finetuned_texts})
        asked = study.model_copy(update={"repairs": (repair,)})
        return model_keys(asked, cell, "key", "exam")[plain.name]

    assert key(None) == key(as_the_study) != key(short)


def test_texts_that_no_one_reads_are_refused() -> None:
    with pytest.raises(ValueError, match="finetuned_texts has no effect without target_activations: own; leave it out"):
        Repair.model_validate({**two_sided("training").model_dump(), "finetuned_texts": {"samples": 2, "tokens": 4}})
