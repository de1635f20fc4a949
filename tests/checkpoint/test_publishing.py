"""What can go wrong around the rename that lets OUT appear."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import deltamend
from deltamend.checkpoint import publishing
from tests.conftest import Pair
from tests.repairing.test_run import without_seconds

PARTIAL = ".out.deltamend-partial"


def fill(out: Path) -> None:
    out.mkdir(exist_ok=True)
    (out / "mine.txt").write_text("mine")


def test_files_that_appear_in_out_during_the_run_are_not_destroyed(llama_pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        deltamend.OutputError, match="something was put there during the run; the finished work is kept"
    ):
        deltamend.repair(llama_pair.base, llama_pair.finetuned, out, progress=lambda *_: fill(out))
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    deltamend.repair(llama_pair.base, llama_pair.finetuned, out, resume=True, overwrite=True)
    assert deltamend.verify(out) == []
    assert not (tmp_path / PARTIAL).exists()


def test_a_folder_that_cannot_be_synced_after_the_rename_is_no_failure(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = os.fsync
    parent = tmp_path.stat().st_ino

    def refuse_parent(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == parent:
            raise OSError(22, "Invalid argument")
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_parent)
    fill(tmp_path / "out")
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", overwrite=True)
    assert deltamend.verify(tmp_path / "out") == []


def half_published(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that is killed between the two renames of a file system without an exchange."""

    def killed_half_way(_staged: Path, out: Path, aside: Path) -> None:
        out.rename(aside)
        raise KeyboardInterrupt

    out = tmp_path / "out"
    fill(out)
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_exchange", killed_half_way)
        with pytest.raises(KeyboardInterrupt):
            deltamend.repair(pair.base, pair.finetuned, out, overwrite=True)
    assert not out.exists()
    return out


def test_the_next_run_puts_back_what_a_killed_publication_moved(
    own_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = half_published(own_pair, tmp_path, monkeypatch)
    first = min(own_pair.finetuned.glob("model-*.safetensors"))
    with first.open("r+b") as file:  # so that the next run fails
        file.seek(-2, os.SEEK_END)
        file.write(b"\xc0\x7f")
    with pytest.raises(deltamend.FilterError, match="NaN"):
        deltamend.repair(own_pair.base, own_pair.finetuned, out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["fails", "killed"])
def test_a_publication_that_comes_to_nothing_leaves_its_work_to_be_resumed(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    out = tmp_path / "out"
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "whole")
    fill(out)

    def nothing_happens(_staged: Path, _out: Path, _aside: Path) -> None:
        raise KeyboardInterrupt if killed else OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_exchange", nothing_happens)
        with pytest.raises(KeyboardInterrupt if killed else deltamend.OutputError):
            deltamend.repair(llama_pair.base, llama_pair.finetuned, out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]

    filtered: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(publishing.WorkFolder, "record", lambda _work, record: filtered.append(record.name))
        deltamend.repair(llama_pair.base, llama_pair.finetuned, out, resume=True, overwrite=True)
    assert filtered == []
    assert without_seconds(out) == without_seconds(tmp_path / "whole")
    assert not (tmp_path / PARTIAL).exists()


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-renames"])
def test_a_kill_after_the_rename_leaves_nothing_that_is_taken_for_output(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    out = tmp_path / "out"
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "whole")
    fill(out)

    def killed(_work: publishing.WorkFolder) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing.WorkFolder, "discard", killed)
        if not exchange:
            patch.setattr(publishing, "_RENAME_EXCHANGE", 1 << 20)  # refused by the kernel
        with pytest.raises(KeyboardInterrupt):
            deltamend.repair(llama_pair.base, llama_pair.finetuned, out, overwrite=True)
    assert deltamend.verify(out) == []
    deltamend.repair(llama_pair.base, llama_pair.finetuned, out, resume=True)
    assert not (tmp_path / PARTIAL).exists()

    with monkeypatch.context() as patch:
        patch.setattr(publishing.WorkFolder, "discard", killed)
        with pytest.raises(KeyboardInterrupt):
            deltamend.repair(llama_pair.base, llama_pair.finetuned, out, overwrite=True)
    shutil.rmtree(out)
    deltamend.repair(llama_pair.base, llama_pair.finetuned, out, resume=True)
    assert without_seconds(out) == without_seconds(tmp_path / "whole")


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_an_input_may_not_be_the_work_folder(llama_pair: Pair, tmp_path: Path, side: str) -> None:
    place = tmp_path / PARTIAL / "out" if side == "finetuned" else tmp_path / PARTIAL
    shutil.copytree(getattr(llama_pair, side), place)
    before = sorted(tmp_path.rglob("*"))
    sides = {"base": llama_pair.base, "finetuned": llama_pair.finetuned, side: place}
    with pytest.raises(deltamend.OutputError, match="the folder that OUT is made in"):
        deltamend.repair(sides["base"], sides["finetuned"], tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_resume_does_not_call_a_damaged_out_finished(own_pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    deltamend.repair(own_pair.base, own_pair.finetuned, out)
    (out / "tokenizer.json").unlink()
    with pytest.raises(deltamend.OutputError, match="not empty"):
        deltamend.repair(own_pair.base, own_pair.finetuned, out, resume=True)
    deltamend.repair(own_pair.base, own_pair.finetuned, out, resume=True, overwrite=True)
    assert deltamend.verify(out) == []
    (own_pair.finetuned / "tokenizer.json").write_text('{"version": "2.0"}')  # of the same size
    deltamend.repair(own_pair.base, own_pair.finetuned, out, resume=True, overwrite=True)
    assert (out / "tokenizer.json").read_text() == '{"version": "2.0"}'


def test_out_may_be_named_from_inside(llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    deltamend.repair(llama_pair.base, llama_pair.finetuned, ".")
    assert deltamend.verify(tmp_path / "out") == []
