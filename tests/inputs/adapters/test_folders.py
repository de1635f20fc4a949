"""Adapters in subfolders, by the names that PEFT gives them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import deltamend
from deltamend.inputs.adapters.folders import find_adapter
from deltamend.inputs.hub import id_and_subfolder
from tests.conftest import llama
from tests.inputs.adapters.building import adapted, shown


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


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("inside", [".", "chat"])
def test_an_adapter_in_the_folder_of_its_model_is_not_in_out_once_more(inside: str, tmp_path: Path) -> None:
    pair = adapted(tmp_path, llama(torch.float32), target_modules=["q_proj"])
    (pair.base / inside).mkdir(exist_ok=True)
    (pair.base / "other").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(pair.finetuned / file, pair.base / inside / file)
        shutil.copy(pair.finetuned / file, pair.base / "other" / file)
    deltamend.repair(pair.base, f"{pair.base}+{pair.base / inside}", tmp_path / "out", method="none")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("adapter*")}
    assert found == {"other/adapter_config.json", "other/adapter_model.safetensors"}
    left_out = json.loads((tmp_path / "out" / "deltamend.json").read_text())["left_out"]
    assert [file["reason"] for file in left_out] == ["is merged into the weights"] * 2
    deltamend.repair(pair.base, f"{pair.base}+{pair.base / inside}", tmp_path / "as", method="rank", output="adapter")
    assert deltamend.verify(tmp_path / "as") == []


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
