from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import deltamend
from deltamend.errors import OutputError
from deltamend.inputs import gguf_file
from tests.conftest import Printed, fine_tune, llama
from tests.reference import load

Cli = Callable[..., Printed]


def write_gguf(path: Path) -> None:
    """A Llama of two layers in fp32, in the names of llama.cpp."""
    model = llama(torch.float32)
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["t", "1", *(f"t{row}" for row in range(1, config.vocab_size - 1))])
    writer.add_token_merges(["t 1"])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_token_types([1] * config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # llama.cpp stores them in another order of rows
                values = (
                    tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
                )
        found = names.get_name(name, try_suffixes=(".weight",))
        assert found is not None
        writer.add_tensor(found, np.ascontiguousarray(values.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_a_gguf_base_is_unpacked_once_and_repaired_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deltamend_cli: Cli
) -> None:
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "base.gguf")
    model = llama(torch.float32)
    model.save_pretrained(tmp_path / "base")
    fine_tune(model)
    model.save_pretrained(tmp_path / "finetuned")
    deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "expected")
    printed = deltamend_cli("repair", tmp_path / "base.gguf", tmp_path / "finetuned", tmp_path / "out")
    assert printed.code == 0, printed.err
    assert "base.gguf: read from a GGUF file; what quantisation changed in it counts as part of Δ" in printed.out
    ours, theirs = load(tmp_path / "out"), load(tmp_path / "expected")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (unpacked,) = (tmp_path / "cache").iterdir()
    before = (unpacked / "model.safetensors").stat().st_mtime_ns
    deltamend_cli("repair", tmp_path / "base.gguf", tmp_path / "finetuned", tmp_path / "again")
    assert (unpacked / "model.safetensors").stat().st_mtime_ns == before


def test_a_gguf_file_that_cannot_be_read_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deltamend_cli: Cli
) -> None:
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 60)
    printed = deltamend_cli("repair", tmp_path / "bad.gguf", tmp_path / "bad.gguf", tmp_path / "out")
    assert printed.code == 1
    assert "bad.gguf: transformers cannot read it" in printed.err
    assert printed.err.count("\n") == 1
    assert not any((tmp_path / "cache").iterdir())


def test_a_full_disk_is_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
    (tmp_path / "good.gguf").write_bytes(b"GGUF")

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_file, "unpack_gguf", full)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\); .*DELTAMEND_CACHE"):
        gguf_file.unpacked(tmp_path / "good.gguf")
    assert not any((tmp_path / "cache").iterdir())


def _unpacks_content(gguf: Path, out: Path, *, dtype: str) -> None:
    assert dtype == "float32"
    (out / "model.safetensors").write_bytes(gguf.read_bytes()[-8:])


def test_two_files_that_differ_anywhere_are_two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one name, one size, one time and one beginning: only the whole content tells them apart."""
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_file, "unpack_gguf", _unpacks_content)
    folders = []
    for side in ("base", "finetuned"):
        (tmp_path / side).mkdir()
        file = tmp_path / side / "model.gguf"
        file.write_bytes(bytes((1 << 24) + 1) + side[:4].encode() * 2)
        os.utime(file, ns=(1, 1))
        folders.append(gguf_file.unpacked(file))
    assert folders[0] != folders[1]
    assert [(folder / "model.safetensors").read_bytes() for folder in folders] == [b"basebase", b"finefine"]


def test_a_damaged_folder_is_unpacked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_file, "unpack_gguf", _unpacks_content)
    (tmp_path / "a.gguf").write_bytes(b"GGUF" * 4)
    folder = gguf_file.unpacked(tmp_path / "a.gguf")
    (folder / "model.safetensors").write_bytes(b"GGUFGGU ")
    assert gguf_file.unpacked(tmp_path / "a.gguf") == folder
    assert (folder / "model.safetensors").read_bytes() == b"GGUFGGUF"
    assert list((tmp_path / "cache").iterdir()) == [folder]
