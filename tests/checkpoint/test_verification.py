from __future__ import annotations

import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import deltamend
from deltamend.checkpoint.safetensors_header import read_header
from tests.conftest import Pair, Printed


@pytest.fixture
def out(llama_pair: Pair, tmp_path: Path) -> Path:
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out")
    return tmp_path / "out"


def test_what_was_written_is_in_order(out: Path, deltamend_cli: Callable[..., Printed]) -> None:
    assert deltamend.verify(out) == []
    printed = deltamend_cli("verify", out)
    assert (printed.code, printed.err) == (0, "")
    assert "matches its recorded hash" in printed.out


def test_any_flipped_bit_is_found(out: Path) -> None:
    chance = random.Random(0)
    files = sorted(file for file in out.iterdir() if file.is_file())
    for _ in range(60):
        file = chance.choice(files)
        written = file.read_bytes()
        damaged = bytearray(written)
        position = chance.randrange(len(damaged))
        damaged[position] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            faults = deltamend.verify(out)
        except deltamend.CheckpointError as error:
            faults = [str(error)]
        assert faults, f"{file.name} at {position}"
        file.write_bytes(written)
    assert deltamend.verify(out) == []


def test_the_changed_tensor_is_named(out: Path, deltamend_cli: Callable[..., Printed]) -> None:
    shard = max(out.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    printed = deltamend_cli("verify", out)
    assert printed.code == 1
    last = read_header(shard).entries[-1].name
    assert printed.err.splitlines() == [f"{out}: {shard.name}: changed", f"{out}: tensor {last!r}: changed"]


def test_missing_and_added_files_are_found(out: Path) -> None:
    (out / "tokenizer.json").unlink()
    (out / "extra.py").write_text("")
    assert deltamend.verify(out) == ["tokenizer.json: missing", "extra.py: not written by deltamend"]


def test_an_edited_manifest_is_not_trusted(out: Path) -> None:
    path = out / "deltamend.json"
    manifest = json.loads(path.read_text())
    manifest["method"] = "none"
    path.write_text(json.dumps(manifest, indent=1))
    with pytest.raises(deltamend.CheckpointError, match="differs from the hash it records of itself"):
        deltamend.verify(out)


def test_a_folder_of_somebody_else(llama_pair: Pair) -> None:
    with pytest.raises(deltamend.CheckpointError, match="give a folder that deltamend wrote"):
        deltamend.verify(llama_pair.base)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "x").touch()


def _link_to_a_copy(path: Path) -> None:
    kept = path.parent.parent / "copy"
    shutil.copy(path.with_name("tokenizer.json"), kept)
    path.with_name("tokenizer.json").unlink()
    path.with_name("tokenizer.json").symlink_to(kept)


ADDED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (lambda path: path.write_text(""), "added"),
    "a hidden file": (lambda path: path.with_name(".added").write_text(""), ".added"),
    "a file in a folder": (_folder, "added/x"),
    "an empty folder": (lambda path: path.mkdir(), "added"),
    "a pipe": (os.mkfifo, "added"),
    "a socket": (_socket, "added"),
    "a link": (lambda path: path.symlink_to("config.json"), "added"),
    "a link to nothing": (lambda path: path.symlink_to("gone"), "added"),
    "a link to a folder": (lambda path: path.symlink_to(".."), "added"),
    "a link to a copy of what was there": (_link_to_a_copy, "tokenizer.json"),
}


@pytest.mark.parametrize("kind", sorted(ADDED))
def test_whatever_was_added_is_named(kind: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out.parent)
    add, name = ADDED[kind]
    add(out / "added")
    faults = deltamend.verify(out)
    assert {fault.split(":")[0] for fault in faults} == {name}
