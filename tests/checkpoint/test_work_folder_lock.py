"""A work folder is ours or is left alone; what cannot be removed is said, and the next run goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deltamend
from deltamend.checkpoint import publishing, work_folder_lock
from deltamend.errors import OutputError
from tests.conftest import Pair, Printed

PARTIAL = ".out.deltamend-partial"
KEY = '{"key": "abc"}\n'


def _tree(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else path.read_text()
        found[path.relative_to(folder).as_posix()] = kind
    return found


def _precious(at: Path) -> Path:
    """A folder that looks like a work folder, with somebody's files."""
    (at / "out").mkdir(parents=True)
    (at / "out" / "thesis.txt").write_text("x")
    (at / "journal.jsonl").write_text(KEY)
    (at / "file").write_text("mine")
    return at


def _with(name: str, make: Callable[[Path, Path], object], journal: str | None = KEY) -> Callable[[Path, Path], object]:
    def build(work: Path, precious: Path) -> None:
        work.mkdir()
        if journal is not None:
            (work / "journal.jsonl").write_text(journal)
        make(work / name, precious)

    return build


FOREIGN: dict[str, Callable[[Path, Path], object]] = {
    "a link": lambda work, precious: work.symlink_to(precious),
    "a link to nothing": lambda work, precious: work.symlink_to(precious / "gone"),
    "a file": lambda work, _: work.write_text("mine"),
    "a folder of somebody's": _with("thesis.txt", lambda path, _: path.write_text("x"), None),
    "with a file of somebody's": _with("thesis.txt", lambda path, _: path.write_text("x")),
    "a folder out without a journal": _with("out", lambda path, _: path.mkdir(), None),
    "another journal": _with("out", lambda path, _: path.mkdir(), "notes\n"),
    "a journal that is a link": _with(
        "journal.jsonl", lambda path, other: path.symlink_to(other / "journal.jsonl"), None
    ),
    "a journal with another name": _with(
        "journal.jsonl", lambda path, other: os.link(other / "journal.jsonl", path), None
    ),
    **{
        f"{name} that is a link": _with(name, lambda path, other: path.symlink_to(other / "out"))
        for name in ("out", "parts", "replaced")
    },
    **{
        f"{name} that is a link": _with(name, lambda path, other: path.symlink_to(other / "file"))
        for name in ("inputs", "exchanging", "journal.new")
    },
    "out that is a file": _with("out", lambda path, _: path.write_text("x")),
}


@pytest.mark.parametrize("kind", sorted(FOREIGN))
def test_what_is_not_ours_is_left_alone(kind: str, llama_pair: Pair, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    FOREIGN[kind](place / PARTIAL, _precious(tmp_path / "precious"))
    before = _tree(tmp_path)
    given: tuple[dict[str, Any], ...] = ({}, {"resume": True}, {"resume": True, "overwrite": True})
    for options in given:
        with pytest.raises(OutputError) as caught:
            deltamend.repair(llama_pair.base, llama_pair.finetuned, place / "out", method="none", **options)
        assert str(caught.value).isprintable()
        assert _tree(tmp_path) == before


def _killed(pair: Pair, out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A run that is killed when everything is written."""

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing.WorkFolder, "publish", kill)
        with pytest.raises(KeyboardInterrupt):
            deltamend.repair(pair.base, pair.finetuned, out, method="none", **options)


@pytest.mark.parametrize("kind", ["link", "hard link"])
def test_a_resumed_run_writes_through_no_link(
    kind: str, llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _killed(llama_pair, tmp_path / "out", monkeypatch)
    staged = max((tmp_path / PARTIAL / "out").glob("*.safetensors"))
    precious = tmp_path / "precious"
    shutil.copy(staged, precious)
    staged.unlink()
    staged.symlink_to(precious) if kind == "link" else os.link(precious, staged)
    before = precious.read_bytes()
    with pytest.raises(OutputError, match="is a link or no regular file"):
        deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", method="none", resume=True)
    assert precious.read_bytes() == before


@pytest.mark.parametrize("stop", ["before the journal", "in the journal"])
def test_a_run_that_was_killed_at_once_leaves_a_folder_that_is_ours(
    stop: str, llama_pair: Pair, tmp_path: Path
) -> None:
    (tmp_path / PARTIAL).mkdir()
    if stop == "in the journal":
        (tmp_path / PARTIAL / work_folder_lock.NEW_JOURNAL).write_text('{"key"')
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", method="none")
    assert deltamend.verify(tmp_path / "out") == []
    assert not (tmp_path / PARTIAL).exists()


def _keeps(name: str) -> Callable[..., None]:
    """A `shutil.rmtree` that cannot remove folders of this name, as those whose owner made them read-only."""
    real = shutil.rmtree

    def rmtree(path: Path, ignore_errors: bool = False, onerror: Any = None) -> None:
        if (Path(path) / name).exists():
            if onerror is not None:
                onerror(os.rmdir, str(path), (OSError, OSError(13, "Permission denied"), None))
            return
        real(path, ignore_errors=ignore_errors, onerror=onerror)

    return rmtree


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-renames"])
def test_an_older_out_that_cannot_be_removed_is_named_and_is_in_nobodys_way(
    exchange: bool,
    llama_pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deltamend_cli: Callable[..., Printed],
) -> None:
    if not exchange:
        monkeypatch.setattr(publishing, "_RENAME_EXCHANGE", 1 << 20)  # refused by the kernel
    out = tmp_path / "out"
    monkeypatch.setattr(shutil, "rmtree", _keeps("kept"))
    for number in (1, 2):
        (out / "kept").mkdir(parents=True)
        given = ("repair", "-q", llama_pair.base, llama_pair.finetuned, out, "--method", "none", "--overwrite")
        printed = deltamend_cli(*given)
        assert (printed.code, printed.err.count("\n")) == (0, 1)
        assert f"what is left of it is {tmp_path / f'out.replaced-{number}'}" in printed.err
        assert (tmp_path / f"out.replaced-{number}" / "kept").is_dir()
        assert deltamend.verify(out) == []
        assert not (tmp_path / PARTIAL).exists()


@pytest.mark.parametrize("moment", ["between the renames", "after them"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_kill_in_an_exchange_by_two_renames_loses_neither_out(
    moment: str, resume: bool, llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")

    def killed(staged: Path, place: Path, aside: Path) -> None:
        place.rename(aside)
        if moment == "after them":
            staged.rename(place)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_exchange", killed)
        with pytest.raises(KeyboardInterrupt):
            deltamend.repair(llama_pair.base, llama_pair.finetuned, out, method="none", overwrite=True)
    if resume:
        report = deltamend.repair(llama_pair.base, llama_pair.finetuned, out, method="none", resume=True)
        assert not report.written
        assert deltamend.verify(out) == []
        assert not (tmp_path / PARTIAL).exists()
    else:
        with pytest.raises(OutputError, match="exists and is not empty"):
            deltamend.repair(llama_pair.base, llama_pair.finetuned, out, method="none")
        assert [path.name for path in out.iterdir()] == ["mine"] if moment == "between the renames" else True
