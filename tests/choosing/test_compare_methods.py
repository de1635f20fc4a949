from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import deltamend
from deltamend.choosing.compare_methods import compare
from deltamend.matrices import delta as delta_module
from deltamend.methods.registry import all_methods
from tests.conftest import Pair, Printed
from tests.reference import load

Cli = Callable[..., Printed]

NEED_PARAMETERS = {"task-arithmetic", "fisher", "null-space", "equal-effect", "two-sided"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dg-hard", "wise-ft", "graft", "della", "laser", "none", "revert"])
def test_what_is_compared_is_what_a_repair_writes(method: str, float_pair: Pair, tmp_path: Path) -> None:
    found = compare(float_pair.base, float_pair.finetuned, methods=["magnitude", method])
    report = deltamend.repair(float_pair.base, float_pair.finetuned, tmp_path / "out", method=method)
    base, finetuned, out = load(float_pair.base), load(float_pair.finetuned), load(tmp_path / "out")
    rows = {row.tensor: row for row in found.tensors if row.method == method}
    repaired = {tensor.name: tensor for tensor in report.tensors if tensor.action == "filter"}
    assert list(rows) == [name for name in load(float_pair.finetuned) if name in repaired]
    for name, tensor in repaired.items():
        row = rows[name]
        assert row.outcome == tensor.outcome
        assert row.delta_norm == tensor.delta_norm
        assert row.to_base == tensor.kept_norm
        assert row.rank == (tensor.spectrum.rank if tensor.spectrum else None)
        rounding = 1e-6 * float(torch.linalg.norm(base[name]))
        assert row.to_finetuned == pytest.approx(float(torch.linalg.norm(out[name] - finetuned[name])), abs=rounding)
        assert row.changed <= row.entries == base[name].numel()
    total = next(row for row in found.methods if row.method == method)
    assert total.energy == pytest.approx(report.kept_energy)


@pytest.mark.slow
def test_small_blocks_give_the_same_table(llama_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ["dg-hard", "ties", "breadcrumbs", "dare", "della", "fapm", "graft", "hybrid"]
    whole = compare(llama_pair.base, llama_pair.finetuned, methods=methods, workers=1)
    monkeypatch.setattr(delta_module, "BLOCK_ELEMENTS", 50 * 64)
    blocks = compare(llama_pair.base, llama_pair.finetuned, methods=methods, workers=4)
    for first, second in zip(whole.tensors, blocks.tensors, strict=True):
        assert (first.method, first.tensor, first.outcome, first.rank) == (
            second.method, second.tensor, second.outcome, second.rank
        )  # fmt: skip
        assert second.to_base == pytest.approx(first.to_base, rel=1e-4)


@pytest.mark.slow
def test_every_method_in_every_format(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    given = ["compare", llama_pair.base, llama_pair.finetuned, "--methods", "all"]
    printed = deltamend_cli(*given, "--csv", tmp_path / "t.csv", "--html", tmp_path / "t.html")
    assert printed.code == 0, printed.err
    compared = [name for name in all_methods() if name not in NEED_PARAMETERS]
    assert all(name in printed.out for name in compared)
    assert "not compared: fisher, which needs fisher" in printed.out
    content = json.loads(deltamend_cli(*given, "--json").out)
    assert [row["method"] for row in content["methods"]] == compared
    energies = {row["method"]: row["energy"] for row in content["methods"]}
    assert (energies["none"], energies["revert"]) == (1.0, 0.0)
    assert energies["wise-ft"] == pytest.approx(0.25, rel=1e-5)
    matrices = sum(tensor.ndim == 2 for tensor in load(llama_pair.finetuned).values())
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert len(rows) == len(content["tensors"]) == matrices * len(compared)
    assert np.isfinite([float(row["to_base"]) for row in rows]).all()
    page = (tmp_path / "t.html").read_text()
    assert all(f"<th>{name}</th>" in page for name in compared)
    assert str(tmp_path) not in page


def test_checkpoints_are_written_for_the_methods_that_are_wanted(
    llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli
) -> None:
    given = ["compare", llama_pair.base, llama_pair.finetuned, "--methods", "none,dare", "-q"]
    printed = deltamend_cli(*given, "--write", "dare,wise-ft", "--out", tmp_path / "out")
    assert (printed.code, printed.out) == (0, "")
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["dare", "wise-ft"]
    assert deltamend.verify(tmp_path / "out" / "dare") == []


def test_all_may_be_written_but_for_methods_that_need_parameters(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deltamend_cli: Cli
) -> None:
    written: list[str] = []
    monkeypatch.setattr(deltamend, "repair", lambda *_, method, **__: written.append(method.name))
    given = ["compare", llama_pair.base, llama_pair.finetuned, "--methods", "none", "--out", tmp_path / "out"]
    printed = deltamend_cli(*given, "--write", "all")
    assert printed.code == 0, printed.err
    assert written == [name for name in all_methods() if name not in NEED_PARAMETERS]
    assert "not written: fisher, which needs fisher" in printed.err
    printed = deltamend_cli(*given, "--write", "all,magnitude")
    assert (printed.code, printed.err.count("\n")) == (2, 1)
    assert "'magnitude' is given twice" in printed.err


def test_a_method_is_compared_with_its_parameters(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    wanted = "wise-ft:alpha=0.3,wise-ft,ties:density=0.1:weight=0.5"
    given = ["compare", llama_pair.base, llama_pair.finetuned, "--methods", wanted, "--json"]
    content = json.loads(deltamend_cli(*given, "--write", "wise-ft:alpha=0.3", "--out", tmp_path / "out").out)
    assert [row["method"] for row in content["methods"]] == [
        "wise-ft alpha=0.3",
        "wise-ft",
        "ties weight=0.5 density=0.1",
    ]
    assert content["methods"][0]["energy"] == pytest.approx(0.09, rel=1e-5)
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["wise-ft,alpha=0.3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "tise"], "did you mean 'ties'?"),
        (["--methods", "ties,ties"], "'ties' is given twice"),
        (["--methods", "ties:density"], "--methods: 'density' is not KEY=VALUE"),
        (["--methods", "ties:density=2"], "parameter 'density'"),
        (["--methods", "fisher"], "parameter 'fisher': is missing"),
        (["--write", "ties"], "--write and --out belong together"),
        (
            ["--include", "zzz"],
            "no matrix is left to compare methods on; let --include match more names, or --exclude fewer",
        ),
        (["--write", "tise", "--out", "somewhere"], "did you mean 'ties'?"),
    ],
)
def test_wrong_usage_is_one_line(options: list[str], message: str, llama_pair: Pair, deltamend_cli: Cli) -> None:
    printed = deltamend_cli("compare", llama_pair.base, llama_pair.finetuned, *options)
    assert printed.code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1
