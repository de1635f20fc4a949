"""The files beside the weights land in OUT as they were when the run was planned, or there is no OUT."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import deltamend
from deltamend.checkpoint.sidecars import list_sidecars
from deltamend.errors import CheckpointError
from deltamend.machine.regular_files import open_regular, open_without_links
from tests.conftest import Pair

NAME = "more/tokens.json"


def _link(path: Path) -> None:
    path.rename(path.parent.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent.parent / "elsewhere")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def _folder_link(path: Path) -> None:
    folder = path.parent
    folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _same_size(path: Path) -> None:
    times = path.stat()
    path.write_text(path.read_text().replace("a", "b"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "another content": lambda path: path.write_text("other"),
    "another content of one size and time": _same_size,
    "another file of one size": lambda path: (path.with_name("x").write_text("[b]"), path.with_name("x").replace(path)),
    "nothing": lambda path: path.write_text(""),
    "gone": lambda path: path.unlink(),
    "a link to its own content": _link,
    "a link in its path": _folder_link,
    "a pipe": _pipe,
    "a socket": _socket,
    "a folder": _as_folder,
}


@pytest.mark.parametrize("kind", sorted(CHANGES))
def test_a_file_that_changes_during_the_run_never_lands_in_out(
    kind: str, own_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_pair.finetuned / NAME
    path.parent.mkdir()
    path.write_text("[a]")
    changed: list[object] = []
    one_at_a_time = threading.Lock()
    monkeypatch.chdir(tmp_path)

    def change(*_: object) -> None:
        with one_at_a_time:  # it is called from several threads
            if not changed:
                changed.append(CHANGES[kind](path))

    with pytest.raises(CheckpointError) as caught:
        deltamend.repair(own_pair.base, own_pair.finetuned, tmp_path / "out", method="none", progress=change)
    assert str(caught.value).isprintable()
    assert "tokens.json" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_what_is_no_file_is_never_waited_for(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x"
    path.touch()
    if kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        CHANGES[f"a {kind}"](path)
    for opened in (open_regular, open_without_links):
        with pytest.raises(OSError, match=r"regular file|Is a directory|No such device"):
            opened(path)


def test_no_link_in_a_path_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "to-file").symlink_to(tmp_path / "a" / "b" / "file")
    os.close(open_without_links(tmp_path / "a" / "b" / "file"))
    for name in ("link/b/file", "a/to-file"):
        os.close(open_regular(tmp_path / name))
        with pytest.raises(OSError, match=r"."):
            open_without_links(tmp_path / name)


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("models--org--name/snapshots/rev", True),
        ("models/snapshots/rev", False),
        ("models--a/other/rev", False),
        ("a/b/c", False),
    ],
)
def test_only_a_snapshot_of_the_hub_may_link_to_blobs(folder: str, allowed: bool, tmp_path: Path) -> None:
    place = tmp_path / folder
    place.mkdir(parents=True)
    blobs = place.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / "x").write_text("{}")
    (place / "tokenizer.json").symlink_to("../../blobs/x")
    if allowed:
        assert [file.name for file in list_sidecars(place, frozenset())[0]] == ["tokenizer.json"]
    else:
        with pytest.raises(CheckpointError, match="a link that leads out of the folder"):
            list_sidecars(place, frozenset())


def test_weights_that_are_replaced_by_a_file_of_one_size_and_time_are_noticed(own_pair: Pair, tmp_path: Path) -> None:
    weights = min(own_pair.finetuned.glob("*.safetensors"))
    changed: list[object] = []

    def change(*_: object) -> None:
        if not changed:
            changed.append(True)
            shutil.copy2(weights, tmp_path / "twin")
            (tmp_path / "twin").replace(weights)

    with pytest.raises(CheckpointError, match="changed during the run"):
        deltamend.repair(own_pair.base, own_pair.finetuned, tmp_path / "out", method="none", progress=change)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["README.md", "README.finetuned.md", "deltamend.json", "model.safetensors.index.json"])
def test_a_folder_named_like_a_file_of_out_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "x").write_text("x")
    with pytest.raises(CheckpointError, match="is a folder, and OUT needs a file of this name"):
        list_sidecars(tmp_path, frozenset())
