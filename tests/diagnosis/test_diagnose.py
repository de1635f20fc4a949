from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deltamend
from deltamend.checkpoint.hashing import hash_file
from deltamend.diagnosis.groups import by_layer, grouped
from deltamend.errors import FilterError, UsageError
from deltamend.matrices import delta as delta_module
from tests.conftest import Pair
from tests.reference import load

pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.fixture(scope="module")
def found(float_pair: Pair) -> deltamend.Diagnosis:
    return deltamend.diagnose(float_pair.base, float_pair.finetuned, values=True)


def test_every_matrix_is_diagnosed_in_the_order_of_the_file(found: deltamend.Diagnosis, float_pair: Pair) -> None:
    tensors = load(float_pair.finetuned)
    assert [matrix.name for matrix in found.matrices] == [name for name, value in tensors.items() if value.ndim == 2]
    assert found.left_out == {"not a matrix": sum(value.ndim != 2 for value in tensors.values())}


def test_the_rank_two_signal_over_noise_of_a_test_pair_is_seen(found: deltamend.Diagnosis) -> None:
    assert found.verdict == "noise-like bulk"
    assert all(matrix.spectrum and matrix.spectrum.rank == 2 for matrix in found.matrices)
    assert found.commands[0] == "deltamend repair BASE FINETUNED OUT"


@pytest.mark.slow
@pytest.mark.parametrize("out_dtype", [None, "bf16", "fp16"])
def test_what_is_predicted_is_what_a_repair_writes(float_pair: Pair, tmp_path: Path, out_dtype: str | None) -> None:
    predicted = deltamend.diagnose(float_pair.base, float_pair.finetuned, out_dtype=out_dtype)
    report = deltamend.repair(float_pair.base, float_pair.finetuned, tmp_path / "out", out_dtype=out_dtype)
    repaired = {tensor.name: tensor for tensor in report.tensors}
    for matrix in predicted.matrices:
        written = repaired[matrix.name]
        assert matrix.spectrum is not None
        assert matrix.rounding is not None
        assert written.spectrum is not None
        assert matrix.spectrum.rank == written.spectrum.rank
        assert matrix.spectrum.threshold == pytest.approx(written.spectrum.threshold, rel=1e-5)
        assert matrix.rounding.lost == pytest.approx(written.realised_error, rel=1e-4)
        assert matrix.rounding.unmoved == pytest.approx(written.unmoved, abs=1e-3)


@pytest.mark.slow
def test_workers_and_block_sizes_do_not_matter(llama_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    one = deltamend.diagnose(llama_pair.base, llama_pair.finetuned, workers=1)
    four = deltamend.diagnose(llama_pair.base, llama_pair.finetuned, workers=4)
    assert four.matrices == one.matrices
    monkeypatch.setattr(delta_module, "BLOCK_ELEMENTS", 50 * 64)
    cut = deltamend.diagnose(llama_pair.base, llama_pair.finetuned)
    for first, second in zip(one.table(), cut.table(), strict=True):
        assert second["verdict"] == first["verdict"]
        for key, value in first.items():
            if isinstance(value, float) and not key.endswith("correlation_p") and not key.endswith("_correlation"):
                assert second[key] == pytest.approx(value, rel=1e-3, abs=1e-6), (first["name"], key)


def test_the_record_survives_json(found: deltamend.Diagnosis) -> None:
    assert deltamend.Diagnosis.model_validate_json(found.model_dump_json()) == found
    matrix = found.matrices[0]
    assert matrix.spectrum is not None
    assert matrix.spectrum.values is not None
    assert len(matrix.spectrum.values) == min(matrix.shape)


def test_the_table_is_flat_and_every_row_has_the_same_columns(found: deltamend.Diagnosis) -> None:
    rows = found.table()
    assert all(list(row) == list(rows[0]) for row in rows)
    assert all(value is None or isinstance(value, str | int | float) for row in rows for value in row.values())
    json.dumps(rows, allow_nan=False)


def test_equal_checkpoints_are_almost_unchanged(llama_pair: Pair) -> None:
    found = deltamend.diagnose(llama_pair.base, llama_pair.base)
    assert found.verdict == "almost unchanged"
    assert all(matrix.spectrum is None and matrix.reasons == ("Δ is exactly 0.",) for matrix in found.matrices)
    assert all(list(row) == list(found.table()[0]) for row in found.table())


def test_groups_weigh_matrices_by_their_entries(found: deltamend.Diagnosis) -> None:
    kinds = grouped(found.matrices, lambda matrix: matrix.kind)
    assert [group.name for group, _ in kinds] == ["embedding", "mlp", "attention"]
    assert sum(group.matrices for group, _ in kinds) == len(found.matrices)
    group, (embedding,) = kinds[0]
    assert embedding.bulk is not None
    assert group.ks == pytest.approx(embedding.bulk.ks)
    assert [group.name for group, _ in by_layer(found.matrices)] == ["0", "1"]


@pytest.mark.slow
def test_inputs_are_not_modified(own_pair: Pair) -> None:
    files = [*own_pair.base.iterdir(), *own_pair.finetuned.iterdir()]
    before = {file: hash_file(file, file.name).sha256 for file in files}
    deltamend.diagnose(own_pair.base, own_pair.finetuned)
    assert {file: hash_file(file, file.name).sha256 for file in files} == before


def test_an_adapter_beside_its_base_is_low_rank_by_construction(float_pair: Pair, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = {
        f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_{side}.weight": torch.randn(shape, generator=generator)
        for layer in (0, 1)
        for side, shape in (("A", (4, 64)), ("B", (160, 4)))
    }
    save_file(factors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["up_proj"], "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = deltamend.diagnose(float_pair.base, f"{float_pair.base}+{tmp_path}", include="up_proj")
    assert [matrix.update_rank for matrix in found.matrices] == [4, 4]
    assert found.verdict == "low-rank by construction"
    assert all(matrix.spectrum and matrix.spectrum.numerical_rank == 4 for matrix in found.matrices)


def test_include_and_exclude_choose_matrices(llama_pair: Pair) -> None:
    found = deltamend.diagnose(llama_pair.base, llama_pair.finetuned, include="mlp", exclude="down_proj")
    assert {matrix.module for matrix in found.matrices} == {"mlp.gate_proj", "mlp.up_proj"}
    with pytest.raises(UsageError, match="no matrix is left to diagnose"):
        deltamend.diagnose(llama_pair.base, llama_pair.finetuned, include="no such name")


def test_nan_is_refused_by_name(own_pair: Pair) -> None:
    shutil.rmtree(own_pair.finetuned)
    shutil.copytree(own_pair.base, own_pair.finetuned)
    tensors = load(own_pair.base)
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].clone()
    tensors["model.layers.0.mlp.up_proj.weight"][1, 2] = torch.nan
    save_file(tensors, own_pair.finetuned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FilterError, match=r"layers.0.mlp.up_proj.weight' holds NaN or Inf in FINETUNED"):
        deltamend.diagnose(own_pair.base, own_pair.finetuned)
