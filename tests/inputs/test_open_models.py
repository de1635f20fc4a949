"""Models of many families and dtypes are opened, repaired and loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

import deltamend
from deltamend.errors import CheckpointError
from deltamend.inputs.open_models import model_folder
from tests.conftest import gpt2, llama, save_pair
from tests.inputs.checkpoints import check, gemma, mixtral, neox, phi3, qwen3, qwen3_moe, tuned
from tests.inputs.numpy_pairs import body, write
from tests.reference import load


@pytest.mark.slow
@pytest.mark.parametrize("make", [qwen3, gemma, mixtral, qwen3_moe, gpt2, neox, phi3], ids=lambda make: make.__name__)
def test_a_family_is_repaired_and_loads(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path / "base")
    tuned(model).save_pretrained(tmp_path / "finetuned")
    deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    out = load(tmp_path / "out")
    assert check((load(tmp_path / "base"), load(tmp_path / "finetuned")), out) >= 5
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.isfinite(loaded(torch.tensor([[1, 2, 3]])).logits).all()
    assert list(out) == list(load(tmp_path / "finetuned"))


def test_dtypes_may_differ_between_the_sides(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path / "pair")
    half = AutoModelForCausalLM.from_pretrained(pair.base).half()
    shutil.rmtree(pair.base)
    half.save_pretrained(pair.base)
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "out")
    assert check((load(pair.base), load(pair.finetuned)), load(tmp_path / "out")) == 16


def test_an_adapter_alone_and_several_adapters_are_refused_with_what_to_give(tmp_path: Path) -> None:
    model = write(tmp_path / "model", body(np.random.default_rng(0)))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    for sides in ((adapter, model), (model, adapter)):
        with pytest.raises(
            deltamend.CheckpointError, match=r"adapter: holds an adapter and no model; .*MODEL\+ADAPTER"
        ):
            deltamend.repair(*sides, tmp_path / "out", method="revert")
    with pytest.raises(deltamend.CheckpointError, match="names several adapters; give one"):
        deltamend.open_checkpoint(f"{model}+{adapter}+{adapter}")


def test_a_folder_that_may_not_be_entered_is_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed" / "model"
    look = Path.stat

    def refuses(path: Path, **options: Any) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", refuses)
    with pytest.raises(CheckpointError, match="may not enter a folder above it"):
        model_folder(str(closed))
    with pytest.raises(CheckpointError, match="no such folder"):
        model_folder(str(tmp_path / "gone" / "model"))
