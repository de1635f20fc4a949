"""A folder in which the commands of the docs run as printed: models, items and records under the names that pages use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deltamend.evaluation.record import write_evaluation
from tests.conftest import Pair, fine_tune, llama
from tests.docs.printed import ROOT, blocks_of
from tests.evaluation.conftest import save_tokenizer
from tests.inputs.test_gguf import write_gguf
from tests.scoring.records import made_up_cell
from tests.study.standins import stand_in_pair

TUTORIAL = ROOT / "docs" / "tutorial"
CHATS = [(f"{number}+2", str(number + 2)) for number in range(4)]
"""What `deltamend finetune` learns on the pages."""


@pytest.fixture(scope="session")
def talking_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Llama in fp32 with a tokenizer of bytes and a chat template, so that it can be run and asked."""
    folder = tmp_path_factory.mktemp("talking")
    pair = Pair(folder / "base", folder / "finetuned")
    for side in (pair.base, pair.finetuned):
        model = llama(torch.float32, vocab_size=save_tokenizer(side))
        if side == pair.finetuned:
            fine_tune(model)
        model.save_pretrained(side)
    return pair


@pytest.fixture(scope="session")
def lora_adapter(talking_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of rank 4 to the base."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(talking_pair.base)
    adapter = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapter.save_pretrained(str(folder))
    return folder


def first_lines(source: Path, target: Path, count: int) -> None:
    """Copy the first lines of a file."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    target.write_text("".join(lines[:count]), encoding="utf-8")


def lay_out(folder: Path, pair: Pair) -> None:
    """The pair and some items in a folder, as pages call them."""
    for name, target in (("BASE", pair.base), ("FINETUNED", pair.finetuned), ("MODEL", pair.base)):
        (folder / name).symlink_to(target)
        (folder / name.lower()).symlink_to(target)
    (folder / "DIR").mkdir()
    for place in (folder, folder / "DIR"):
        for source in TUTORIAL.glob("*.jsonl"):
            first_lines(source, place / source.name, 8)
    (folder / "models").mkdir()
    for name in ("base", "finetuned"):
        (folder / "models" / name).symlink_to(folder / name)
    chats = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in CHATS]
    for name in ("chats.jsonl", "old.jsonl"):
        (folder / name).write_text("".join(f"{json.dumps(chat)}\n" for chat in chats), encoding="utf-8")
    examples = [{"prompt": question, "response": answer} for question, answer in CHATS]
    (folder / "examples.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in examples), encoding="utf-8")
    (folder / "FILE.yaml").write_text(blocks_of("docs/methods/rules.md", "yaml")[0], encoding="utf-8")


@pytest.fixture
def world(tmp_path: Path, talking_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make the folder for a page, and be in it."""

    def make(page: str) -> Path:
        folder = tmp_path / "world"
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("DELTAMEND_CACHE", str(tmp_path / "cache"))
        lay_out(folder, _pair_of(page, talking_pair, tmp_path))
        return folder

    return make


def _pair_of(page: str, talking_pair: Pair, scratch: Path) -> Pair:
    """The pair that a page is about."""
    name = page.removeprefix("docs/")
    if name == "how-to/multimodal.md":
        return stand_in_pair("qwen3.5-4b", scratch / "seeing")
    if name == "formats/names.md":
        pair = Pair(scratch / "own" / "base", scratch / "own" / "finetuned")
        shutil.copytree(talking_pair.base, pair.base)
        shutil.copytree(talking_pair.finetuned, pair.finetuned)
        path = pair.finetuned / "model.safetensors"
        tensors = {f"language_model.{name}": one for name, one in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        return pair
    return talking_pair


def add_gguf(folder: Path) -> None:
    """BASE as a GGUF file, and a descendant of it."""
    write_gguf(folder / "BASE.gguf")
    (folder / "FINETUNED").unlink()
    model = llama(torch.float32)
    fine_tune(model)
    model.save_pretrained(folder / "FINETUNED")


def add_records(folder: Path) -> None:
    """What `deltamend evaluate` writes of a base, a fine-tuned and a repaired model."""
    names = {"base": "base", "finetuned": "finetuned", "good": "repaired"}
    for model, record in made_up_cell().items():
        if model in names:
            write_evaluation(record, folder / f"{names[model]}.json.gz")
