from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltamend
from deltamend import _api
from tests.conftest import Pair, Printed

Cli = Callable[..., Printed]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    own_pair: Pair, tmp_path: Path, deltamend_cli: Cli
) -> None:
    (own_pair.finetuned / "optimizer.pt").write_bytes(b"state")
    before = sorted(tmp_path.rglob("*"))
    printed = deltamend_cli(
        "repair", own_pair.base, own_pair.finetuned, tmp_path / "out", "--dry-run", "-v", "-e", "mlp"
    )
    assert printed.code == 0
    assert "dry run, nothing is written: dg-hard would repair 10 matrices; FINETUNED has 21 tensors" in printed.out
    assert "6 tensors would be kept as fine-tuned: matched by exclude" in printed.out
    assert "5 tensors would be kept as fine-tuned: not a matrix" in printed.out
    assert "file left out (state of the training run): optimizer.pt" in printed.out
    assert "filter lm_head.weight [200×64]" in printed.out
    assert "OUT would hold 2 weight files and 6 other files, 0.23 MB in all" in printed.out
    assert re.search(r"with \d+ workers? it would take about \d+ s and 0\.\d GiB of memory", printed.out)
    assert sorted(tmp_path.rglob("*")) == before


def test_verbose_shows_every_tensor(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    printed = deltamend_cli("repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", "-v")
    assert "2/64" in printed.out
    assert "21 tensors: 16 filtered, 5 kept" in printed.out
    assert "of the update's energy" in printed.out


def test_a_repair_that_rounding_undoes_is_warned_of(tmp_path: Path, deltamend_cli: Cli) -> None:
    # Rounding is a third of a percent of Δ* and a third of the one percent that WiSE-FT takes away.
    drawn = torch.Generator().manual_seed(0)
    for side, scale in (("base", 0.02), ("finetuned", 0.03)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "config.json").write_text("{}")
        weight = (scale * torch.randn(64, 64, generator=drawn)).to(torch.bfloat16)
        save_file({"weight": weight}, tmp_path / side / "model.safetensors")
    command = ("repair", tmp_path / "base", tmp_path / "finetuned", "--allow-unrelated")
    little = deltamend_cli(*command, tmp_path / "little", "--method", "wise-ft", "--set", "alpha=0.99")
    assert "of what the repair removed, so that this part of the repair may be lost" in little.out
    manifest = json.loads((tmp_path / "little" / "deltamend.json").read_text())
    assert manifest["tensors"][0]["realised_error"] < 0.01
    much = deltamend_cli(*command, tmp_path / "much", "--method", "wise-ft", "--set", "alpha=0.5")
    exact = deltamend_cli(
        *command, tmp_path / "exact", "--method", "wise-ft", "--set", "alpha=0.99", "--out-dtype", "fp32"
    )
    assert "warning" not in much.out + exact.out


def test_names_of_tensors_are_only_text(tmp_path: Path, deltamend_cli: Cli) -> None:
    name = "[/bold]{x}[link=file:///etc]"
    for side, value in (("base", 0.0), ("finetuned", 1.0)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "config.json").write_text("{}")
        save_file({name: torch.full((4, 5), value)}, tmp_path / side / "model.safetensors")
    folders = (tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    for options in (("-v", "--dry-run"), ("-v",)):
        printed = deltamend_cli("repair", *folders, *options)
        assert printed.code == 0
        assert "[/bold]" in printed.out
        assert "{x}[link" in printed.out


def test_what_is_left_out_is_said(own_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    (own_pair.finetuned / "optimizer.pt").write_bytes(b"state")
    weights = load_file(own_pair.base / "model.safetensors")
    save_file({**weights, "gone": torch.ones(3)}, own_pair.base / "model.safetensors")
    printed = deltamend_cli("repair", own_pair.base, own_pair.finetuned, tmp_path / "out")
    assert "tensor left out, as it is only in BASE: gone" in printed.out
    assert ": optimizer.pt" in printed.out


@pytest.mark.slow
def test_a_dry_run_of_resume_says_what_the_run_would(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    command = ("repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", "--resume")
    assert deltamend_cli(*command).code == 0
    assert "nothing to do" in deltamend_cli(*command, "--dry-run").out
    assert "was already complete; nothing was written" in deltamend_cli(*command).out
    (tmp_path / "out" / "tokenizer.json").unlink()
    for options in ((), ("--dry-run",)):
        printed = deltamend_cli(*command, *options)
        assert printed.code == 1
        assert "not empty" in printed.err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--device", "nonsense"), ("--max-shard-size", "0GB"), ("--max-shard-size", "5 apples")],
)
def test_values_that_mean_nothing_are_wrong_usage(
    llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli, option: str, value: str
) -> None:
    printed = deltamend_cli("repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", option, value)
    assert (printed.code, len(printed.err.splitlines())) == (2, 1)
    assert f"{option}: {value!r}" in printed.err
    assert list(tmp_path.iterdir()) == []


def test_quiet_prints_nothing(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    printed = deltamend_cli("repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", "--quiet")
    assert (printed.code, printed.out, printed.err) == (0, "", "")


def test_json_is_the_manifest(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    printed = deltamend_cli("repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", "--json")
    assert json.loads(printed.out) == json.loads((tmp_path / "out" / "deltamend.json").read_text())


def test_a_loss_in_rounding_is_warned_of_with_the_remedy(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    # a thousandth of the update is far below the spacing of bf16
    options = ("--method", "wise-ft", "--set", "alpha=0.001")
    printed = deltamend_cli("repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", *options)
    assert "warning" in printed.out
    assert "--out-dtype fp32" in printed.out
    printed = deltamend_cli(
        "repair", llama_pair.base, llama_pair.finetuned, tmp_path / "wide", *options, "--out-dtype", "fp32"
    )
    assert "warning" not in printed.out


def test_ctrl_c_says_how_to_go_on(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    ended: list[int] = []
    monkeypatch.setattr(deltamend, "repair", interrupted)
    monkeypatch.setattr("os._exit", ended.append)  # pytest has to live on
    monkeypatch.setattr(
        "sys.argv", ["deltamend", "repair", str(llama_pair.base), str(llama_pair.finetuned), str(tmp_path / "out")]
    )
    from deltamend.cli import main

    main()
    assert ended == [1]
    assert "run the same command with --resume to continue" in capfd.readouterr().err


def test_a_dry_run_can_be_read_by_a_script(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    printed = deltamend_cli(
        "repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", "--dry-run", "--json", "--vectors", "0.5"
    )
    plan = json.loads(printed.out)
    assert [tensor["action"] for tensor in plan["tensors"]] == ["filter"] * 21
    assert plan["options"]["vectors"] == "0.5"
    assert plan["checkpoint_bytes"] > 0
    assert "dg-hard would repair 16 matrices and 5 vectors; FINETUNED has 21 tensors" in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_lossy_cast_names_the_remedies(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    small = ("--method", "task-arithmetic", "--set", "weight=1e-4")
    printed = deltamend_cli("repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", *small)
    assert printed.out.count("write them with --out-dtype fp32\n") == 1
    printed = deltamend_cli(
        "repair", llama_pair.base, llama_pair.finetuned, tmp_path / "exact", *small, "--out-dtype", "fp32"
    )
    assert "warning" not in printed.out


@pytest.mark.slow
def test_an_adapter_is_offered_where_one_can_be_written(tmp_path: Path, deltamend_cli: Cli) -> None:
    drawn = torch.Generator().manual_seed(0)
    weight, left, right = (torch.randn(*shape, generator=drawn) for shape in ((64, 64), (64, 1), (1, 64)))
    for side, tensor in (("base", weight), ("finetuned", weight + 1e-3 * left @ right)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "config.json").write_text("{}")
        save_file({"weight": tensor, "lm_head.weight": tensor.clone()}, tmp_path / side / "model.safetensors")
    command = ("repair", tmp_path / "base", tmp_path / "finetuned", tmp_path / "out", "--overwrite")
    low_rank = (*command, "--method", "rank", "--set", "rank=1")
    (tmp_path / "rule.yaml").write_text("rules: [{kind: head, method: wise-ft}]")
    for options, offered in ((low_rank, True), ((*low_rank, "--config", tmp_path / "rule.yaml"), False)):
        printed = deltamend_cli(*options, "--out-dtype", "bf16")
        assert "write them with --out-dtype fp32" in printed.out
        assert ("--as adapter" in printed.out) == offered
        assert (deltamend_cli(*options, "--as", "adapter").code == 0) == offered


@pytest.mark.slow
@pytest.mark.usefixtures("few_draws")
def test_the_page_of_the_diagnosis_comes_with_the_repair(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    given = ["repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", "-q", "--html", tmp_path / "page.html"]
    printed = deltamend_cli(*given)
    assert (printed.code, printed.out) == (0, "")
    assert "model.layers.0.self_attn.q_proj.weight" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "deltamend.json").exists()


@pytest.mark.parametrize(
    ("page", "options", "code", "says"),
    [
        ("nodir/p.html", (), 1, "its folder does not exist"),
        ("out/p.html", (), 1, "its folder does not exist"),
        ("base/p.html", (), 1, "belongs to the input"),
        ("finetuned", (), 1, "belongs to the input"),
        ("folder", (), 1, "exists and is not a file"),
        ("p.html", ("--include", "zzz"), 2, "no matrix is left to diagnose"),
        ("p.html", ("--include", "zzz", "--vectors", "0.5", "--dry-run"), 2, "no matrix is left to diagnose"),
    ],
)
def test_a_page_that_cannot_be_made_is_refused_before_the_repair(
    own_pair: Pair, tmp_path: Path, deltamend_cli: Cli, page: str, options: tuple[str, ...], code: int, says: str
) -> None:
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    given = ("repair", own_pair.base, own_pair.finetuned, tmp_path / "out", "--html", tmp_path / page)
    printed = deltamend_cli(*given, *options)
    assert (printed.code, printed.err.count("\n")) == (code, 1)
    assert says in printed.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_page_of_a_renamed_pair_shows_what_was_repaired(own_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    weights = load_file(own_pair.base / "model.safetensors")
    odd = {name.replace("model.", "odd."): tensor for name, tensor in weights.items()}
    save_file(odd, own_pair.base / "model.safetensors")
    given = ("repair", own_pair.base, own_pair.finetuned, tmp_path / "out", "--rename", "odd.=model.")
    printed = deltamend_cli(*given, "--html", tmp_path / "page.html", "--allow-unpaired")  # BASE has no head
    assert printed.code == 0
    assert "model.layers.0.mlp.up_proj" in (tmp_path / "page.html").read_text()
    assert deltamend.verify(tmp_path / "out") == []


def test_a_page_that_fails_all_the_same_says_that_out_is_whole(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deltamend_cli: Cli
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise deltamend.OutputError("the disk is full")

    monkeypatch.setattr(deltamend, "diagnose", failing)
    given = ("repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", "--html", tmp_path / "page.html")
    printed = deltamend_cli(*given)
    assert (printed.code, printed.err.count("\n")) == (1, 1)
    assert (
        f"the page was not written (the disk is full); the repair itself, {tmp_path / 'out'}, is complete"
        in printed.err
    )
    assert "21 tensors: 16 filtered, 5 kept" in printed.out
    assert deltamend.verify(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--as", "adapter"), 2, "the methods that --method auto chooses from keep a low-rank update only"),
        (("--include", "("), 2, "is not a regular expression"),
        (("--vectors", "half"), 2, "--vectors: 'half'"),
        (("--rounding", "up"), 2, "--rounding"),
        (("--html", "nodir/p.html"), 1, "its folder does not exist"),
    ],
)
def test_auto_refuses_what_it_can_before_it_reads_the_base(
    llama_pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deltamend_cli: Cli,
    options: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    monkeypatch.setattr(_api, "recommend", _never)
    auto = ("--method", "auto")
    printed = deltamend_cli("repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", *auto, *options)
    assert (printed.code, printed.err.count("\n")) == (code, 1)
    assert says in printed.err
    assert list(tmp_path.iterdir()) == []


def test_auto_looks_at_folders_before_it_reads_the_base(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deltamend_cli: Cli
) -> None:
    monkeypatch.setattr(_api, "recommend", _never)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    for folders, says in (
        ((llama_pair.finetuned, tmp_path / "out"), "exists and is not empty"),
        ((tmp_path / "gone", tmp_path / "new"), "gone: no such folder"),
    ):
        printed = deltamend_cli("repair", llama_pair.base, *folders, "--method", "auto")
        assert (printed.code, printed.err.count("\n")) == (1, 1)
        assert says in printed.err


def _never(*_: object, **__: object) -> None:
    raise AssertionError("BASE was read")
