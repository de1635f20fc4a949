"""Hub ids, against a stand-in for huggingface_hub's download and against its real offline cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file

import deltamend
from deltamend.inputs.hub import is_hub_id
from tests.conftest import Pair, Printed

Cli = Callable[..., Printed]


@pytest.fixture
def cache(llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds tiny/base and tiny/tuned, as a download leaves them."""
    home = tmp_path / "hub"
    for name, folder in (("base", llama_pair.base), ("tuned", llama_pair.finetuned)):
        repository = home / f"models--tiny--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("c0ffee")
        shutil.copytree(folder, repository / "snapshots" / "c0ffee")
    real: Any = huggingface_hub.snapshot_download

    def from_here(*arguments: object, **options: object) -> str:
        return str(real(*arguments, **{**options, "cache_dir": home}))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", from_here)
    return home


def test_a_model_in_the_cache_is_opened_offline(
    llama_pair: Pair, cache: Path, tmp_path: Path, deltamend_cli: Cli
) -> None:
    assert cache.is_dir()
    printed = deltamend_cli("repair", "tiny/base", "tiny/tuned@main", tmp_path / "out")
    assert printed.code == 0, printed.err
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "expected")
    for file in sorted((tmp_path / "expected").glob("*.safetensors")):
        ours, theirs = load_file(tmp_path / "out" / file.name), load_file(file)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["tiny/absent", "tiny/base@other"])
def test_what_is_not_in_the_cache_is_said_in_one_line(name: str, tmp_path: Path, deltamend_cli: Cli) -> None:
    printed = deltamend_cli("repair", name, "tiny/tuned", tmp_path / "out")
    assert (printed.code, printed.err.count("\n")) == (1, 1)
    assert f"{name}: is neither a folder on this machine nor in the cache, and the hub cannot be reached" in printed.err


def test_only_what_is_needed_is_downloaded_and_bin_only_where_there_is_nothing_else(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    folder = tmp_path / "snapshot"
    shutil.copytree(llama_pair.base, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")

    def download(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert (name, revision) == ("org/model", "v2")
        asked.append(allow_patterns)
        assert {"original/*", "consolidated*"} <= set(ignore_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with deltamend.open_checkpoint("org/model@v2") as checkpoint:
        assert list(checkpoint.headers) == ["model.safetensors"]
    assert len(asked) == 1
    assert {"*.safetensors", "*.pt"} <= set(asked[0])
    assert "*.bin" not in asked[0]
    (folder / "model.safetensors").unlink()
    with deltamend.open_checkpoint("org/model@v2") as checkpoint:
        assert list(checkpoint.headers) == ["pytorch_model.bin"]
    assert "*.bin" in asked[2]


def test_a_refusal_of_the_hub_names_the_model_and_never_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deltamend_cli: Cli
) -> None:
    def refuse(*_: object, **__: object) -> str:
        answer: Any = SimpleNamespace(status_code=404, headers={}, request=None)
        raise RepositoryNotFoundError("secret-token", response=answer)

    monkeypatch.setenv("HF_TOKEN", "secret-token")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    printed = deltamend_cli("repair", "org/gone", "org/gone", tmp_path / "out")
    assert printed.code == 1
    assert "org/gone: the hub refuses it (404)" in printed.err
    assert "secret-token" not in printed.err + printed.out


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("a/b", True),
        ("a/b@rev/1", True),
        ("a", False),
        ("a/b/c", False),
        ("../b", False),
        ("a/..", False),
        ("/a/b", False),
    ],
)
def test_what_a_hub_id_is(text: str, is_one: bool) -> None:
    assert is_hub_id(text) is is_one
