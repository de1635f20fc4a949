from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Printed
from tests.evaluation.conftest import ARC, items, tiny_model, write_items

__all__ = ["items", "tiny_model"]  # fixtures

Cli = Callable[..., Printed]


@pytest.mark.slow
def test_a_suite_over_local_items_is_asked_and_printed(
    deltamend_cli: Cli, tiny_model: Path, items: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        "name: mine\nversion: '1'\ntasks:\n"
        "  - {name: arc, task: arc_easy, file: arc_easy.jsonl}\n"
        "  - {name: safe, task: xstest_safe, file: xstest.jsonl, chat: true, max_tokens: 2}\n"
    )
    out = tmp_path / "out.json"
    arguments = (tiny_model, "--suite", f"{suite}:{items}", "--limit", 2, "--device", "cpu", "--out", out)
    printed = deltamend_cli("evaluate", *arguments)
    assert printed.code == 0, printed.err
    assert "│ complied, weak │" in printed.out
    assert "weak: refusals are found by their wording" in printed.out
    assert f"wrote {out}" in printed.out
    assert printed.err == ""
    again = deltamend_cli("evaluate", *arguments)
    assert again.code == 1
    assert again.err == f"deltamend: {out}: already exists; give another name, or --overwrite\n"
    quiet = deltamend_cli("evaluate", *arguments, "--resume", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


@pytest.mark.slow
def test_json_holds_the_means_and_nothing_else_is_on_stdout(
    deltamend_cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    mine = write_items(tmp_path / "mine.jsonl", ARC[:4])
    out = tmp_path / "out.json"
    printed = deltamend_cli(
        "evaluate", tiny_model, "--task", mine, "--out", out, "--json", "--backend-args", "max_length=256"
    )
    assert printed.code == 0, printed.err
    content = json.loads(printed.out)
    assert content["settings"]["backend.max_length"] == "256"
    assert (content["tasks"]["mine"]["items"], content["tasks"]["mine"]["metric"]) == (4, "acc_norm")
    assert 0 <= content["tasks"]["mine"]["mean"] <= 1


def test_wrong_usage_exits_2_and_says_what_to_give(deltamend_cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    for arguments, message in (
        ((), "nothing to ask; give --suite or --task"),
        (("--suite", "papr"), "--suite: there is no suite 'papr'"),
        (("--suite", "quick", "--seed", "-1"), "--seed: -1 is out of range; give 0 to 4294967295"),
        (("--suite", "quick", "--judge", "gpt"), "--judge: there is no judge 'gpt'"),
        (("--suite", "quick", "--backend-args", "x"), "--backend-args: 'x' is not KEY=VALUE"),
    ):
        printed = deltamend_cli("evaluate", tiny_model, "--out", out, *arguments)
        assert printed.code == 2
        assert message in printed.err
        assert printed.err.count("\n") == 1
    assert not out.exists()
