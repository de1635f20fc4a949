"""The names of parameters in the files of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltamend.calibration.names_in_files import as_stored, stored_names
from deltamend.errors import CheckpointError
from tests.inputs.architectures import CONVERTS, build
from tests.reference import load


@pytest.mark.parametrize("name", ["llava", "mixtral", "qwen2_5_vl"])
def test_every_parameter_has_its_name_in_the_file_unless_it_is_stacked_on_loading(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    own = dict(model.named_parameters())
    found = stored_names(model, own, tmp_path)
    file = load(tmp_path)
    assert all(file[stored].equal(own[shown]) for shown, stored in found.items())
    assert own.keys() - found.keys() == {shown for shown in own if CONVERTS and ".experts." in shown}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v3", "mixtral", "gemma3", "gpt_oss"])
def test_numbers_for_every_entry_are_taken_apart_as_the_file_is(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    file = load(tmp_path)
    found = as_stored(loaded, dict(loaded.named_parameters()), tmp_path)
    assert found.keys() == file.keys() - {stored for stored in file if stored.endswith("e_score_correction_bias")}
    assert all(value.equal(file[stored]) for stored, value in found.items())


def test_a_parameter_without_a_tensor_is_refused(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'model\.extra\.weight' that the checkpoint does not"):
        stored_names(model, ["model.extra.weight"], tmp_path)
