from __future__ import annotations

from pathlib import Path

import pytest

from deltamend.machine.cache import default_cache_dir


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("DELTAMEND_CACHE", raising=False)
    assert default_cache_dir() == tmp_path / "xdg" / "deltamend"
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"


def test_without_a_choice_it_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.delenv("DELTAMEND_CACHE", raising=False)
    assert default_cache_dir() == tmp_path / ".cache" / "deltamend"
    monkeypatch.setenv("DELTAMEND_CACHE", "~/models")
    assert default_cache_dir() == tmp_path / "models"
