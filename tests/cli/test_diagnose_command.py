from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import deltamend
from tests.conftest import Pair, Printed

pytestmark = pytest.mark.usefixtures("few_draws")
Cli = Callable[..., Printed]


@pytest.mark.slow
def test_the_verdict_its_numbers_and_the_next_command_are_printed(float_pair: Pair, deltamend_cli: Cli) -> None:
    printed = deltamend_cli("diagnose", float_pair.base, float_pair.finetuned)
    assert printed.code == 0, printed.err
    assert "verdict: noise-like bulk" in printed.out
    assert "embedding" in printed.out
    assert "  attention ▁▁" in printed.out
    assert f"  deltamend repair {float_pair.base} {float_pair.finetuned} OUT" in printed.out


@pytest.mark.slow
def test_every_format_has_every_matrix(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    files = {name: tmp_path / f"d.{name}" for name in ("html", "json", "csv")}
    options = [word for name, file in files.items() for word in (f"--{name}", file)]
    printed = deltamend_cli("diagnose", llama_pair.base, llama_pair.finetuned, *options, "--quiet")
    assert (printed.code, printed.out) == (0, "")
    found = deltamend.Diagnosis.model_validate_json(files["json"].read_text())
    assert found.matrices == deltamend.diagnose(llama_pair.base, llama_pair.finetuned).matrices
    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert [row["name"] for row in rows] == [matrix.name for matrix in found.matrices]
    page = files["html"].read_text()
    assert all(matrix.name in page for matrix in found.matrices)
    assert str(tmp_path) not in page


def test_a_dash_prints_json_and_nothing_else(llama_pair: Pair, deltamend_cli: Cli) -> None:
    printed = deltamend_cli(
        "diagnose", llama_pair.base, llama_pair.finetuned, "--json", "-", "-i", "q_proj", "--values"
    )
    content = json.loads(printed.out)
    assert [matrix["module"] for matrix in content["matrices"]] == ["self_attn.q_proj"] * 2
    assert len(content["matrices"][0]["spectrum"]["values"]) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-i", "no such name"], "no matrix is left to diagnose; let --include match more names, or --exclude fewer"),
        (["-i", "("], "--include: '(' is not a regular expression"),
        (["--out-dtype", "int3"], "--out-dtype: 'int3' is not a data type that can be written; give one of bf16"),
    ],
)
def test_what_means_nothing_is_wrong_usage(
    options: list[str], message: str, llama_pair: Pair, deltamend_cli: Cli
) -> None:
    printed = deltamend_cli("diagnose", llama_pair.base, llama_pair.finetuned, *options)
    assert (printed.code, printed.out) == (2, "")
    assert message in printed.err


def test_a_file_that_cannot_be_written_is_named(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    target = tmp_path / "nowhere" / "d.html"
    printed = deltamend_cli("diagnose", llama_pair.base, llama_pair.finetuned, "-i", "q_proj", "--html", target)
    assert printed.code == 1
    assert f"{target}: its folder does not exist" in printed.err
