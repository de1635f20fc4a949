"""A folder of the cache is whole, or is made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deltamend.machine.cached_folders import CONTENTS_FILE, checked_folder, is_intact


def _make(part: Path) -> None:
    (part / "weights").write_bytes(bytes(range(256)))
    (part / "tokens").mkdir()
    (part / "tokens" / "vocabulary").write_text("a b c")


def _flip(folder: Path) -> None:
    content = bytearray((folder / "weights").read_bytes())
    content[100] ^= 1
    (folder / "weights").write_bytes(content)


def _replace_by_link(folder: Path) -> None:
    shutil.copy(folder / "weights", folder.parent / "elsewhere")
    (folder / "weights").unlink()
    (folder / "weights").symlink_to(folder.parent / "elsewhere")


def _replace_folder_by_link(folder: Path) -> None:
    folder.rename(folder.parent / "moved")
    folder.symlink_to(folder.parent / "moved")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit": _flip,
    "cut off": lambda folder: (folder / "weights").write_bytes(b"x"),
    "gone": lambda folder: (folder / "weights").unlink(),
    "more": lambda folder: (folder / "more").touch(),
    "a link": _replace_by_link,
    "the folder a link": _replace_folder_by_link,
    "no list": lambda folder: (folder / CONTENTS_FILE).unlink(),
    "another list": lambda folder: (folder / CONTENTS_FILE).write_text("{}"),
    "no JSON": lambda folder: (folder / CONTENTS_FILE).write_text("[" * 100_000),
}


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_what_was_damaged_is_made_again(kind: str, tmp_path: Path) -> None:
    made = []

    def make(part: Path) -> None:
        made.append(part)
        _make(part)

    folder = tmp_path / "model"
    assert checked_folder(folder, make) == folder == checked_folder(folder, make)
    assert len(made) == 1
    DAMAGE[kind](folder)
    assert not is_intact(folder)
    checked_folder(folder, make)
    assert len(made) == 2
    assert is_intact(folder)
    assert not folder.is_symlink()
    assert (folder / "weights").read_bytes() == bytes(range(256))
