from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import deltamend
from deltamend.checkpoint.file_names import MANIFEST_FILE
from deltamend.matrices import buffers
from deltamend.matrices import delta as delta_module
from tests.conftest import RANK, Pair, llama, save_pair
from tests.matrices.made_up import write_checkpoint
from tests.reference import dg_hard, load


def without_seconds(folder: Path) -> dict[str, bytes]:
    """Every file of a checkpoint; the manifest without what may differ from run to run."""
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    manifest = json.loads(files.pop(MANIFEST_FILE))
    del manifest["run"], manifest["self_sha256"]
    for tensor in manifest["tensors"]:
        del tensor["seconds"]
    return files | {MANIFEST_FILE: json.dumps(manifest, sort_keys=True).encode()}


@pytest.mark.parametrize("pair_name", ["llama_pair", "float_pair", "gpt2_pair"])
def test_every_matrix_is_what_a_float64_svd_gives(
    pair_name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pair: Pair = request.getfixturevalue(pair_name)
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", out_dtype="fp32")
    base, finetuned, out = load(pair.base), load(pair.finetuned), load(tmp_path / "out")
    filtered = [tensor for tensor in report.tensors if tensor.action == "filter"]
    assert len(filtered) >= 9
    for tensor in filtered:
        before, after = base[tensor.name].double().numpy(), out[tensor.name].double().numpy()
        expected, rank = dg_hard(finetuned[tensor.name].double().numpy() - before)
        assert tensor.spectrum is not None
        assert (tensor.outcome, tensor.spectrum.rank, rank) == ("filtered", RANK, RANK)
        # W_base + Δ* is stored in fp32, so Δ* is known from the file to about ε₃₂·‖W‖ only.
        rounding = 2**-24 * np.linalg.norm(before + expected)
        assert np.linalg.norm(after - before - expected) < 1e-5 * np.linalg.norm(expected) + rounding
        assert tensor.kept_norm == pytest.approx(np.linalg.norm(expected), rel=1e-5)


def test_what_is_not_a_matrix_has_the_fine_tuned_bytes(llama_pair: Pair, tmp_path: Path) -> None:
    report = deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out")
    finetuned, out = load(llama_pair.finetuned), load(tmp_path / "out")
    kept = [tensor.name for tensor in report.tensors if tensor.action == "keep"]
    assert len(kept) == 5  # two norms a layer, and the last one
    assert all(torch.equal(out[name], finetuned[name]) for name in kept)
    assert list(out) == list(finetuned)


def test_a_base_repaired_against_itself_has_its_own_bytes(llama_pair: Pair, tmp_path: Path) -> None:
    deltamend.repair(llama_pair.base, llama_pair.base, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (llama_pair.base / "model.safetensors").read_bytes()


def test_a_header_that_is_spelt_otherwise_keeps_its_bytes(own_pair: Pair, tmp_path: Path) -> None:
    file = own_pair.base / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), indent=2).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    deltamend.repair(own_pair.base, own_pair.base, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == file.read_bytes()


def test_the_output_loads_and_generates(llama_pair: Pair, tmp_path: Path) -> None:
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    generated = model.generate(
        torch.tensor([[1, 2, 3]]), attention_mask=torch.ones(1, 3), max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    assert generated.shape == (1, 7)


def test_files_beside_the_weights_come_along(llama_pair: Pair, tmp_path: Path) -> None:
    report = deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "modeling_tiny.py"):
        assert (tmp_path / "out" / name).read_bytes() == (llama_pair.finetuned / name).read_bytes()
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (llama_pair.finetuned / index).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card
    assert "repaired with dg-hard" in card
    assert (tmp_path / "out" / "README.finetuned.md").read_text().endswith("# My fine-tune\n")
    text = (tmp_path / "out" / MANIFEST_FILE).read_text()
    assert str(tmp_path) not in text + card
    assert str(llama_pair.base.parent) not in text + card
    assert {file.name for file in report.manifest.files} == {
        file.name for file in (tmp_path / "out").iterdir() if file.name != MANIFEST_FILE
    }


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(llama_pair: Pair, tmp_path: Path) -> None:
    for workers in (1, 2, 5):
        deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / f"out{workers}", workers=workers)
    first = without_seconds(tmp_path / "out1")
    assert without_seconds(tmp_path / "out2") == first
    assert without_seconds(tmp_path / "out5") == first


def test_reading_in_small_blocks_gives_the_same_matrices(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "whole", out_dtype="fp32")
    # 50 rows or columns at a time, so that tall and wide matrices are cut, with a rest
    monkeypatch.setattr(delta_module, "BLOCK_ELEMENTS", 50 * 64)
    monkeypatch.setattr(buffers, "CHUNK_ELEMENTS", 7 * 64)
    report = deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "blocks", out_dtype="fp32")
    base, whole, blocks = load(llama_pair.base), load(tmp_path / "whole"), load(tmp_path / "blocks")
    for name, expected in whole.items():
        before = base[name].float()
        assert torch.linalg.norm(blocks[name] - expected) <= 1e-5 * torch.linalg.norm(expected - before)
    assert deltamend.verify(tmp_path / "blocks") == []
    assert {tensor.outcome for tensor in report.tensors} == {"filtered", "kept"}


def test_realised_delta_is_what_the_file_holds(llama_pair: Pair, tmp_path: Path) -> None:
    report = deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out")
    exact = deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "exact", out_dtype="fp32")
    base, out, wide = load(llama_pair.base), load(tmp_path / "out"), load(tmp_path / "exact")
    finetuned = load(llama_pair.finetuned)
    for tensor in report.tensors:
        if tensor.action == "filter":
            realised = out[tensor.name].double() - base[tensor.name].double()
            lost = realised - (wide[tensor.name].double() - base[tensor.name].double())
            assert tensor.kept_norm is not None
            assert tensor.realised_norm == pytest.approx(float(torch.linalg.norm(realised)), rel=1e-5)
            assert tensor.realised_error == pytest.approx(float(torch.linalg.norm(lost)) / tensor.kept_norm, rel=1e-2)
            removed = finetuned[tensor.name].double() - wide[tensor.name].double()
            assert tensor.removed_norm == pytest.approx(float(torch.linalg.norm(removed)), rel=1e-5)
            assert tensor.unmoved == pytest.approx(float((realised == 0).double().mean()))
    assert 1e-4 < report.realised_error < 1e-2
    assert exact.realised_error < 1e-6


def test_interpolation_is_the_formula(float_pair: Pair, tmp_path: Path) -> None:
    deltamend.repair(
        float_pair.base, float_pair.finetuned, tmp_path / "out", method="wise-ft", parameters={"alpha": 0.25}
    )
    base, finetuned, out = load(float_pair.base), load(float_pair.finetuned), load(tmp_path / "out")
    for name, tensor in out.items():
        expected = finetuned[name] if tensor.ndim != 2 else base[name] + 0.25 * (finetuned[name] - base[name])
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("alpha", "side"), [(0, "base"), (1, "finetuned")])
def test_the_ends_of_interpolation_are_exact(llama_pair: Pair, tmp_path: Path, alpha: int, side: str) -> None:
    deltamend.repair(
        llama_pair.base, llama_pair.finetuned, tmp_path / "out", method="wise-ft", parameters={"alpha": alpha}
    )
    expected, out = load(getattr(llama_pair, side)), load(tmp_path / "out")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in out.items() if tensor.ndim == 2)


def test_include_and_exclude_choose_matrices(llama_pair: Pair, tmp_path: Path) -> None:
    report = deltamend.repair(
        llama_pair.base, llama_pair.finetuned, tmp_path / "out", include=r"layers\.0\.", exclude="mlp"
    )
    filtered = [tensor.name for tensor in report.tensors if tensor.action == "filter"]
    assert len(filtered) == 4
    assert all(re.search(r"layers\.0\.self_attn", name) for name in filtered)
    finetuned, out = load(llama_pair.finetuned), load(tmp_path / "out")
    assert all(torch.equal(out[name], finetuned[name]) for name in out if name not in filtered)


def test_other_shards_and_dtype_can_be_asked_for(llama_pair: Pair, tmp_path: Path) -> None:
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", out_dtype="fp32", max_shard_size="200KB")
    shards = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert model.dtype == torch.float32
    assert not info["missing_keys"]
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "one", max_shard_size="1GB")
    assert (tmp_path / "one" / "model.safetensors").exists()
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "one")


def test_a_resized_vocabulary_is_repaired_where_shared_and_kept_where_new(tmp_path: Path) -> None:
    model = llama()
    pair = save_pair(model, tmp_path)
    model.resize_token_embeddings(210, mean_resizing=False)
    model.save_pretrained(pair.finetuned)
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "out")
    finetuned, out = load(pair.finetuned), load(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(out[name][200:], finetuned[name][200:])
        assert not torch.equal(out[name][:200], finetuned[name][:200])
        record = next(tensor for tensor in report.tensors if tensor.name == name)
        assert record.rows == 200
        assert "vocabulary resized from 200 to 210 rows" in record.reason


def test_what_exists_on_one_side_only_is_kept_or_reported(own_pair: Pair, tmp_path: Path) -> None:
    base, finetuned = llama(), llama()
    finetuned.register_parameter("extra", torch.nn.Parameter(torch.ones(3, 3)))
    base.register_parameter("gone", torch.nn.Parameter(torch.ones(3, 3)))
    base.save_pretrained(own_pair.base)
    finetuned.save_pretrained(own_pair.finetuned)
    for stale in (*own_pair.finetuned.glob("model-*"), *own_pair.finetuned.glob("*.index.json")):
        stale.unlink()
    report = deltamend.repair(own_pair.base, own_pair.finetuned, tmp_path / "out")
    assert report.manifest.only_in_base == ("gone",)
    extra = next(tensor for tensor in report.tensors if tensor.name == "extra")
    assert (extra.action, extra.reason, extra.base_dtype) == ("keep", "only in FINETUNED", None)
    assert torch.equal(load(tmp_path / "out")["extra"], torch.ones(3, 3))


def test_only_the_files_the_index_names_are_read(own_pair: Pair, tmp_path: Path) -> None:
    (own_pair.finetuned / "consolidated.safetensors").write_bytes(b"not even a header")
    (own_pair.finetuned / "model-00099-of-00099.safetensors").write_bytes(b"stale")
    (own_pair.finetuned / "optimizer.pt").write_bytes(b"state")
    report = deltamend.repair(own_pair.base, own_pair.finetuned, tmp_path / "out")
    left_out = {file.name for file in report.manifest.left_out}
    assert left_out == {"consolidated.safetensors", "model-00099-of-00099.safetensors", "optimizer.pt"}
    assert not (tmp_path / "out" / "consolidated.safetensors").exists()


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_a_link_out_of_the_folder_is_refused(own_pair: Pair, tmp_path: Path, name: str) -> None:
    shutil.copy(own_pair.finetuned / "config.json", tmp_path / "elsewhere")
    (own_pair.finetuned / name).unlink(missing_ok=True)
    (own_pair.finetuned / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(deltamend.CheckpointError, match=f"{name}: a link that leads out of the folder"):
        deltamend.repair(own_pair.base, own_pair.finetuned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overwrite_replaces_an_earlier_output(llama_pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("old")
    deltamend.repair(llama_pair.base, llama_pair.finetuned, out, overwrite=True)
    assert not (out / "mine.txt").exists()
    assert deltamend.verify(out) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_inputs_are_not_modified(own_pair: Pair, tmp_path: Path) -> None:
    def state() -> dict[Path, bytes]:
        return {file: file.read_bytes() for side in (own_pair.base, own_pair.finetuned) for file in side.iterdir()}

    before = state()
    deltamend.repair(own_pair.base, own_pair.finetuned, tmp_path / "out")
    assert state() == before


def test_a_tensor_of_many_rows_of_nothing_does_not_hang(tmp_path: Path) -> None:
    ones = np.ones((2, 3), np.float32)
    base, finetuned = write_checkpoint(tmp_path / "base", a=ones), write_checkpoint(tmp_path / "finetuned", a=ones)
    header = b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[24,24]}}'
    (finetuned / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    # numpy cannot make an array of this shape, so that OUT could not be read by everybody.
    with pytest.raises(deltamend.CheckpointError, match="tensor 'b' cannot be read"):
        deltamend.repair(base, finetuned, tmp_path / "out")
    header = header.replace(b"4611686018427387904", b"1152921504606846976")
    (finetuned / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    report = deltamend.repair(base, finetuned, tmp_path / "out")
    assert len(report.tensors) == 2
