"""Adapters in subfolders, by the names that PEFT gives them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import deltamend
from deltamend.inputs.adapter_folders import find_adapter
from deltamend.inputs.hub import id_and_subfolder
from tests.conftest import llama
from tests.inputs.adapters import adapted, shown


def folder_with(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "adapters"
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "adapter_config.json").write_text("{}")
    return folder


def test_its_own_adapter_comes_first_and_the_others_are_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ".", "chat", "sums", "checkpoint-100")
    assert find_adapter(folder) == (
        folder,
        ["adapters: its own adapter is read; for another, name its subfolder too: 'chat', 'sums'"],
    )


def test_one_subfolder_is_found_and_of_several_one_has_to_be_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "chat")
    assert find_adapter(folder) == (folder / "chat", ["adapters: the adapter in its subfolder 'chat' is read"])
    assert find_adapter(folder / "chat") == (folder / "chat", [])
    folder_with(tmp_path, "sums")
    with pytest.raises(
        deltamend.CheckpointError, match=r"holds the adapters 'chat', 'sums'; name one of them, such as"
    ):
        find_adapter(folder)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_with_an_adapter_in_a_subfolder_is_opened(tmp_path: Path) -> None:
    pair = adapted(tmp_path, llama(torch.float32), target_modules=["q_proj"])
    expected = shown(f"{pair.base}+{pair.finetuned}")
    shutil.move(pair.finetuned, tmp_path / "all" / "chat")
    for name in ("all", "all/chat"):
        found = shown(f"{pair.base}+{tmp_path / name}")
        assert all((found[tensor] == expected[tensor]).all() for tensor in expected)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name/chat", ("org/name", "chat")),
        ("org/name/a/b@v2", ("org/name@v2", "a/b")),
        ("org/name", None),
        ("org/name@v2", None),
        ("org/name/../x", None),
        ("org/name//x", None),
        ("/org/name/x", None),
    ],
)
def test_a_subfolder_on_the_hub_is_told_from_the_id(text: str, found: tuple[str, str] | None) -> None:
    assert id_and_subfolder(text) == found
