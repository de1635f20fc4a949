from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deltamend
from deltamend.errors import CheckpointError
from deltamend.language_model import load
from tests.conftest import Pair, gpt2
from tests.evaluation.conftest import save_tokenizer, tiny_model

__all__ = ["tiny_model"]


@pytest.fixture
def pair(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """The tiny chat model, and the same with noise on every weight."""
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
    model, tokenizer = load(tiny_model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "finetuned")
    tokenizer.save_pretrained(tmp_path / "finetuned")
    return Pair(tiny_model, tmp_path / "finetuned")


def test_auto_is_null_space_by_what_the_base_wrote_and_says_why(
    pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Any]
) -> None:
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "out", "--method", "auto")
    assert printed.code == 0, printed.err
    assert "auto: null-space keeps what the update does" in printed.out
    assert "read in 48 texts that it wrote itself" in printed.out
    advice = deltamend.recommend(pair.base)
    assert "read before" in advice.reason
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "again", method=advice.method, parameters=advice.parameters)
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_where_the_base_cannot_be_run_it_is_wise_ft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
    save_tokenizer(tmp_path / "gpt2")
    gpt2().save_pretrained(tmp_path / "gpt2")
    advice = deltamend.recommend(tmp_path / "gpt2")
    assert (advice.method, advice.parameters, advice.vectors) == ("wise-ft", {"alpha": 0.5}, 0.5)
    assert "stores its weights transposed" in advice.reason
    assert not any((tmp_path / "cache").iterdir())


def test_another_chat_template_is_read_again(pair: Pair, tmp_path: Path) -> None:
    first = deltamend.recommend(pair.base).parameters
    shutil.copytree(pair.base, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert deltamend.recommend(tmp_path / "base").parameters != first


def test_a_base_that_is_not_there_is_an_error_and_parameters_are_not_mixed_in(
    pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Any]
) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        deltamend.recommend(tmp_path / "gone")
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "o", "--method", "auto", "--set", "alpha=1")
    assert printed.code == 2
    assert "chooses method and parameters" in printed.err
