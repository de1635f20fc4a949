from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deltamend.matrices.difference import diff
from tests.conftest import Pair, Printed
from tests.reference import load

Cli = Callable[..., Printed]


def write(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_distances_are_those_of_float64(llama_pair: Pair) -> None:
    found = diff(llama_pair.base, llama_pair.finetuned)
    base, finetuned = load(llama_pair.base), load(llama_pair.finetuned)
    assert {row.name for row in found.tensors} == set(base)
    for row in found.tensors:
        before, after = base[row.name].double(), finetuned[row.name].double()
        assert row.distance == pytest.approx(float((after - before).norm()), rel=1e-5)
        assert row.norm == pytest.approx(float(before.norm()), rel=1e-5)
        assert row.largest == pytest.approx(float((after - before).abs().max()), rel=1e-6)
        assert row.differing == pytest.approx(float((after != before).double().mean()))
    relative = [row.relative for row in found.tensors]
    assert relative == sorted(relative, key=lambda value: -(value or 0.0))
    assert not found.equal


def test_a_checkpoint_is_equal_to_itself(llama_pair: Pair, deltamend_cli: Cli) -> None:
    assert diff(llama_pair.base, llama_pair.base).equal
    printed = deltamend_cli("diff", llama_pair.base, llama_pair.base)
    assert printed.code == 0
    assert "all 21 tensors are equal" in printed.out


def test_what_only_one_side_has_is_named(tmp_path: Path, deltamend_cli: Cli) -> None:
    a = write(tmp_path / "a", x=torch.ones(2, 3), gone=torch.ones(1), grown=torch.ones(2, 2))
    b = write(tmp_path / "b", x=torch.ones(2, 3), new=torch.ones(1), grown=torch.ones(3, 2))
    printed = deltamend_cli("diff", a, b)
    assert "only in A: gone" in printed.out
    assert "only in B: new" in printed.out
    assert "other shape: grown, [2, 2] in A, [3, 2] in B" in printed.out


def test_numbers_that_are_none_and_dtypes_that_differ(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    a = write(tmp_path / "a", x=torch.tensor([nan, 1.0, 2.0]), y=torch.tensor([inf, 1.0]), z=torch.tensor([1, 2]))
    b = write(
        tmp_path / "b", x=torch.tensor([nan, 1.0, 3.0]), y=torch.tensor([inf, 1.0]).half(), z=torch.tensor([1, 3])
    )
    rows = {row.name: row for row in diff(a, b).tensors}
    assert rows["x"].distance is None
    assert rows["x"].differing == pytest.approx(1 / 3)
    assert (rows["y"].dtypes, rows["y"].differing) == (("F32", "F16"), 0.0)
    assert (rows["z"].distance, rows["z"].differing) == (None, 0.5)


def test_json_and_csv_hold_every_tensor(llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    table = tmp_path / "table.csv"
    printed = deltamend_cli("diff", llama_pair.base, llama_pair.finetuned, "--json", "--csv", table)
    content = json.loads(printed.out)
    assert len(content["tensors"]) == 21
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["tensor"] for row in rows] == [row["name"] for row in content["tensors"]]
    assert float(rows[0]["relative"]) == content["tensors"][0]["relative"]
