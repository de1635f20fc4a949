"""Tiny real checkpoints, built from configs, offline."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from deltamend.machine.threads import one_thread_each
from deltamend.spectrum import goodness_of_fit

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

RANK = 2
"""Rank of the planted signal in every matrix of a test pair."""


@dataclass(frozen=True)
class Pair:
    """Folders of a base and a fine-tuned checkpoint."""

    base: Path
    finetuned: Path


def fine_tune(model: PreTrainedModel, *, seed: int = 1, noise: float = 1e-3, signal: float = 5e-2) -> None:
    """Add a rank-2 signal and iid noise to every matrix, and noise to everything else, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            update = noise * torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                left = torch.randn(parameter.shape[0], RANK, generator=generator)
                update += signal * left @ torch.randn(RANK, parameter.shape[1], generator=generator)
            parameter += update.to(parameter.dtype)


def save_pair(model: PreTrainedModel, folder: Path, *, base_shards: str = "5GB", finetuned_shards: str = "5GB") -> Pair:
    """Save a model, fine-tune it, and save it again with the sidecar files people have."""
    pair = Pair(folder / "base", folder / "finetuned")
    model.save_pretrained(pair.base, max_shard_size=base_shards)
    fine_tune(model)
    model.save_pretrained(pair.finetuned, max_shard_size=finetuned_shards)
    (pair.finetuned / "tokenizer.json").write_text('{"version": "1.0"}')
    (pair.finetuned / "chat_template.jinja").write_text("{{ messages }}")
    (pair.finetuned / "modeling_tiny.py").write_text("raise SystemExit('remote code must never run')\n")
    (pair.finetuned / "README.md").write_text("---\nlicense: mit\n---\n# My fine-tune\n")
    return pair


def llama(dtype: torch.dtype = torch.bfloat16, *, vocab_size: int = 200, tied: bool = False) -> LlamaForCausalLM:
    """Two layers, grouped-query attention."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocab_size,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype)


def gpt2(dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    """Two layers of Conv1D, and tied embeddings."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=120, n_positions=32)
    return GPT2LMHeadModel(config).to(dtype)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One BLAS thread: on small matrices more of them only get in each other's way, ten times over on a busy machine."""
    with one_thread_each():
        yield


@pytest.fixture(scope="module")
def few_draws() -> Iterator[None]:
    """199 draws of noise behind a p-value in place of 1,999, for modules that do not test p-values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(goodness_of_fit, "SIMULATIONS", 199)
        yield


@pytest.fixture(scope="session")
def llama_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Llama in bf16: base in one file, fine-tuned in several shards."""
    return save_pair(llama(), tmp_path_factory.mktemp("llama"), finetuned_shards="120KB")


@pytest.fixture(scope="session")
def float_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Llama in fp32, with tied embeddings."""
    return save_pair(llama(torch.float32, tied=True), tmp_path_factory.mktemp("float"))


@pytest.fixture(scope="session")
def gpt2_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """GPT-2 in fp32: Conv1D, whose weights are stored transposed, and tied embeddings."""
    return save_pair(gpt2(), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def own_pair(llama_pair: Pair, tmp_path: Path) -> Pair:
    """A copy of the Llama pair that a test may damage."""
    shutil.copytree(llama_pair.base, tmp_path / "base")
    shutil.copytree(llama_pair.finetuned, tmp_path / "finetuned")
    return Pair(tmp_path / "base", tmp_path / "finetuned")


@dataclass(frozen=True)
class Printed:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def deltamend_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Printed]:
    """Run the command line in this process."""
    from deltamend.cli import main

    def run(*arguments: object) -> Printed:
        capsys.readouterr()  # what the test itself printed before
        monkeypatch.setattr(sys, "argv", ["deltamend", *(str(argument) for argument in arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return Printed(code, captured.out, captured.err)

    return run
