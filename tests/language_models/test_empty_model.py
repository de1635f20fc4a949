"""A model without weights from its config.json, and the names that its parameters have in files."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from deltamend.errors import CheckpointError
from deltamend.language_models.empty_model import build_empty, names_in_memory
from tests.inputs.architectures import CONVERTS, build


@pytest.mark.parametrize("name", ["mixtral", "llava", "gpt2"])
def test_every_stored_name_has_one_in_memory(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    empty = build_empty(json.loads((tmp_path / "config.json").read_text()))
    assert type(empty) is type(model)
    assert all(parameter.is_meta for parameter in empty.parameters())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    names = names_in_memory(empty, stored)
    assert names.keys() == stored.keys()
    own = model.state_dict()
    for key, (shown, converted) in names.items():
        assert converted == (CONVERTS and name == "mixtral" and ".experts." in key)
        assert converted or torch.equal(own[shown], stored[key]), key


def test_names_in_memory_stay_as_they_are() -> None:
    model = build("gemma3")
    own = model.state_dict()
    assert {name: shown.name for name, shown in names_in_memory(model, own).items()} == {name: name for name in own}


@pytest.mark.parametrize(
    ("config", "message"),
    [({"model_type": "unheard-of"}, "cannot build"), ({"num_experts": 10**8}, "num_experts is 100000000")],
)
def test_a_config_that_makes_no_model_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_empty(config)


def test_the_patterns_of_transformers_4_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_the_modules_of_version_5(name: str) -> object:
        raise ImportError(name)

    class Old(torch.nn.Module):
        base_model_prefix = "model"
        _checkpoint_conversion_mapping = {r"^language_model\.model": "model.language_model"}  # noqa: RUF012 - as there

        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.ModuleDict({"language_model": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)})
            self.lm_head = torch.nn.Linear(2, 2, bias=False)

    monkeypatch.setattr(importlib, "import_module", without_the_modules_of_version_5)
    stored = ["language_model.model.weight", "norm.bias", "lm_head.weight", "unknown.weight"]
    assert {name: shown.name for name, shown in names_in_memory(Old(), stored).items()} == {
        "language_model.model.weight": "model.language_model.weight",
        "norm.bias": "model.norm.bias",
        "lm_head.weight": "lm_head.weight",
    }
