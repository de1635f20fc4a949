"""The quick demo from end to end, as `deltamend demo --quick` runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from deltamend.cli.demo_command import demo
from deltamend.demo.measurement import DemoExam, measure
from deltamend.demo.present_results import PAGE_FILE, RECORD_FILE
from deltamend.demo.probes import load_probes
from deltamend.demo.settings import QUICK
from deltamend.demo.sums_task import sums
from deltamend.language_models.loading import load, quiet_transformers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    app = typer.Typer()
    app.command()(demo)
    arguments = ["--quick", "--cache", str(folder / "cache"), "--out", str(folder / "out")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return folder / "cache", folder / "out", result.output


def test_it_prints_the_table_and_where_the_page_is(run: tuple[Path, Path, str]) -> None:
    _, out, printed = run
    assert "Answers in" in printed
    for name in ("Base", "Fine-tuned", "DG-Hard", "WiSE-FT 0.5", "two-sided"):
        assert f" {name} " in printed.split("below each number")[0]  # in 80 columns, none cut short
    assert str(out / PAGE_FILE) in printed


def test_the_toy_learnt_to_talk_and_the_damage_took_it_away(run: tuple[Path, Path, str]) -> None:
    models = json.loads((run[1] / RECORD_FILE).read_text())["models"]
    assert models["Base"]["estimates"]["chat"]["value"] > 0.9
    assert models["Fine-tuned"]["estimates"]["chat"]["value"] < 0.5
    assert models["Fine-tuned"]["estimates"]["target"]["value"] > models["Base"]["estimates"]["target"]["value"]


def test_the_page_has_the_verdict_of_the_record(run: tuple[Path, Path, str]) -> None:
    page, record = (run[1] / PAGE_FILE).read_text(), json.loads((run[1] / RECORD_FILE).read_text())
    assert record["headline"] in page
    assert "This is a toy" in page


def test_half_the_update_is_what_wise_ft_wrote(run: tuple[Path, Path, str]) -> None:
    cache, out, _ = run
    base = load_file(next(cache.glob("base-toy-*")) / "model.safetensors")
    finetuned = load_file(next(cache.glob("finetuned-quick-*")) / "model.safetensors")
    repaired = load_file(out / "wise-ft" / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    halfway = (base[name].float() + finetuned[name].float()) / 2
    assert not finetuned[name].equal(base[name])
    assert repaired[name].equal(halfway.bfloat16())


def test_dg_hard_filtered_matrices_and_says_so(run: tuple[Path, Path, str]) -> None:
    cache, out, _ = run
    manifest = json.loads((out / "dg-hard" / "deltamend.json").read_text())
    filtered = [t["name"] for t in manifest["tensors"] if t["outcome"] == "filtered"]
    assert filtered
    finetuned = load_file(next(cache.glob("finetuned-quick-*")) / "model.safetensors")
    repaired = load_file(out / "dg-hard" / "model.safetensors")
    assert any(not repaired[name].equal(finetuned[name]) for name in filtered)


def test_auto_is_two_sided_by_texts_of_both_models(run: tuple[Path, Path, str]) -> None:
    cache, out, _ = run
    record = json.loads((out / RECORD_FILE).read_text())["repairs"][-1]
    manifest = json.loads((out / record["manifest"]).read_text())
    known = {file.name for file in cache.glob("activations-*.safetensors")}
    assert record["method"] == manifest["method"] == "two-sided"
    assert record["parameters"] == manifest["parameters"]
    read = {manifest["parameters"][name].partition(" ")[0] for name in ("activations", "target_activations")}
    assert read == known
    assert record["kept_energy"] > 0


def test_no_half_made_folder_is_left(run: tuple[Path, Path, str]) -> None:
    cache, out, _ = run
    assert not [path for folder in (cache, out) for path in folder.iterdir() if path.name.endswith(".part")]


def test_a_model_measured_alone_gives_the_numbers_of_the_record(run: tuple[Path, Path, str]) -> None:
    # The demo measures two models at a time, and loading two at a time once gave random weights.
    cache, out, _ = run
    with quiet_transformers():
        base = load(next(cache.glob("base-toy-*")))
    _, held_out = sums(*QUICK.operands, held_out=QUICK.held_out, seed=0)
    exam = DemoExam(tuple(held_out), load_probes(), QUICK.reply_tokens)
    alone = measure(base, exam, lambda _items: None)
    recorded = json.loads((out / RECORD_FILE).read_text())["models"]["Base"]["estimates"]
    assert {name: estimate.value for name, estimate in alone.estimates.items()} == pytest.approx(
        {name: estimate["value"] for name, estimate in recorded.items()}, abs=1e-3
    )
