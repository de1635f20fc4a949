"""Nothing leaves the machine without --yes, nor a folder that differs from its recorded hashes; the token is never printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import deltamend
from deltamend.checkpoint import hub_upload
from deltamend.checkpoint.file_names import ADAPTER_CONFIG_FILE
from tests.conftest import Pair, Printed

Cli = Callable[..., Printed]
TOKEN = "hf_secretsecretsecret"  # noqa: S105 - it opens nothing


class Hub:
    """Stands for `HfApi`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(("upload_folder", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return found


@pytest.fixture
def out(llama_pair: Pair, tmp_path: Path) -> Path:
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out")
    return tmp_path / "out"


def test_without_yes_nothing_is_sent(out: Path, hub: Hub, deltamend_cli: Cli) -> None:
    printed = deltamend_cli("push", out, "me/model")
    assert printed.code == 0
    assert hub.calls == []
    for file in out.iterdir():
        assert file.name in printed.out
    assert "would upload" in printed.out
    assert "private if it is new" in printed.out


def test_yes_sends_every_file_in_one_commit(out: Path, hub: Hub, deltamend_cli: Cli) -> None:
    printed = deltamend_cli("push", out, "me/model", "--yes")
    assert printed.code == 0
    assert [name for name, _ in hub.calls] == ["create_repo", "upload_folder"]
    assert hub.calls[0][1] == {"repo_id": "me/model", "repo_type": "model", "private": True, "exist_ok": True}
    sent = hub.calls[1][1]
    assert sent["folder_path"] == out
    assert set(sent["allow_patterns"]) == {file.name for file in out.iterdir()}
    assert "https://huggingface.co/me/model" in printed.out


def test_public_is_asked_for(out: Path, hub: Hub, deltamend_cli: Cli) -> None:
    assert deltamend_cli("push", out, "me/model", "--yes", "--public").code == 0
    assert hub.calls[0][1]["private"] is False


def test_a_changed_folder_is_not_sent(out: Path, hub: Hub, deltamend_cli: Cli) -> None:
    (out / "config.json").write_text("{}")
    printed = deltamend_cli("push", out, "me/model", "--yes")
    assert printed.code == 1
    assert "differs from its recorded hashes (config.json: changed" in printed.err
    assert hub.calls == []


def test_a_refusal_is_one_line_without_the_token(out: Path, hub: Hub, deltamend_cli: Cli) -> None:
    hub.error = OSError(f"403 Forbidden for {TOKEN}\nand more")
    printed = deltamend_cli("push", out, "me/model", "--yes")
    assert printed.code == 1
    assert "me/model: could not be uploaded (403 Forbidden" in printed.err
    assert len(printed.err.splitlines()) == 1
    assert TOKEN not in printed.err + printed.out


@pytest.mark.parametrize("name", ["model", "a b/c", "me/model/x", "../x"])
def test_a_name_that_is_none(name: str, out: Path, hub: Hub, deltamend_cli: Cli) -> None:
    printed = deltamend_cli("push", out, name, "--yes")
    assert printed.code == 2
    assert "give org/name" in printed.err
    assert hub.calls == []


def test_a_base_on_this_machine_is_said(llama_pair: Pair, tmp_path: Path, hub: Hub, deltamend_cli: Cli) -> None:
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "adapter", output="adapter")
    printed = deltamend_cli("push", tmp_path / "adapter", "me/model")
    assert printed.code == 0
    assert hub.calls == []
    assert f"names {llama_pair.base} as its base" in printed.err


def test_an_adapters_config_that_is_none_is_one_line(
    out: Path, hub: Hub, deltamend_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_upload, "verify", lambda _folder: [])  # as if OUT had been written so
    (out / ADAPTER_CONFIG_FILE).write_text("[]")
    printed = deltamend_cli("push", out, "me/model", "--yes")
    assert (printed.code, printed.err) == (
        1,
        f"deltamend: {out / ADAPTER_CONFIG_FILE}: not a JSON object; download it again\n",
    )
    assert hub.calls == []
