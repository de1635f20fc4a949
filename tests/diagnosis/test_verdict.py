from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

import deltamend
from deltamend.cli.commands import command_line
from deltamend.diagnosis.records import Verdict
from deltamend.diagnosis.verdict import RULES, VerdictRule, rule_of, summary, table
from tests.conftest import Pair

pytestmark = pytest.mark.usefixtures("few_draws")
ROOT = Path(__file__).parents[2]


def test_the_docs_show_the_table_of_rules() -> None:
    assert table() in (ROOT / "docs" / "diagnose.md").read_text(encoding="utf-8")


def test_every_verdict_has_one_rule() -> None:
    assert [rule.verdict for rule in RULES] == list(get_args(Verdict))
    assert rule_of("noise-like bulk") is RULES[3]


def test_the_commands_of_the_rules_exist() -> None:
    known = {
        command.name or (command.callback.__name__ if command.callback else "")
        for command in command_line().registered_commands
    }
    for command in (command for rule in RULES for command in rule.commands):
        program, name, base, finetuned, *_ = command.split()
        assert (program, base, finetuned) == ("deltamend", "BASE", "FINETUNED")
        assert name in known


@pytest.mark.slow
def test_the_commands_of_the_rules_run(float_pair: Pair, tmp_path: Path) -> None:
    options = [command.split("OUT")[1].split() for rule in RULES for command in rule.commands if " OUT" in command]
    for number, given in enumerate(options):
        parameters = dict(word.split("=") for word in given if "=" in word)
        method = given[given.index("--method") + 1] if "--method" in given else "dg-hard"
        out_dtype = given[given.index("--out-dtype") + 1] if "--out-dtype" in given else None
        report = deltamend.repair(
            float_pair.base, float_pair.finetuned, tmp_path / str(number), method=method, parameters=parameters,
            out_dtype=out_dtype,
        )  # fmt: skip
        assert report.written


def test_a_summary_counts_and_weighs(float_pair: Pair) -> None:
    found = deltamend.diagnose(float_pair.base, float_pair.finetuned, include="layers.0|embed")
    other = found.matrices[-1].model_copy(update={"verdict": "structured residual"})
    verdict, sentences, commands = summary([*found.matrices[:-1], other])
    assert verdict == "noise-like bulk"
    count = len(found.matrices)
    assert sentences[0].startswith(f"{count - 1} of {count} matrices, ")
    assert any(sentence.startswith("1 matrix: structured residual.") for sentence in sentences)
    assert commands == rule_of(verdict).commands


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.verdict)
def test_words_end_where_sentences_do(rule: VerdictRule) -> None:
    assert rule.meaning.endswith(".")
    assert rule.advice.endswith(".")
    assert not rule.when.endswith(".")
