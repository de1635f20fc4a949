"""A tiny model with a tokenizer and a chat template, and tiny files of items."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from deltamend.demo.toy_model import CHAT_TEMPLATE
from deltamend.evaluation.backend import BackendOptions
from deltamend.evaluation.record import Evaluation, read_evaluation
from deltamend.evaluation.run import EvaluationRun, run_benchmarks
from deltamend.evaluation.suite import SuiteTask
from tests.conftest import llama
from tests.evaluation.tiny_suite import ARC_EASY, MMLU, SAFE, UNSAFE, suite_of


def save_tokenizer(folder: Path, *, chat: bool = True) -> int:
    """Write a tokenizer of single bytes to `folder`; the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(names[:3])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=names[1], eos_token=names[2], pad_token=names[0]
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return len(names)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in fp32 with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("tiny")
    llama(torch.float32, vocab_size=save_tokenizer(folder)).save_pretrained(folder)
    return folder


def write_items(path: Path, items: Iterable[dict[str, Any]]) -> Path:
    """Write items as JSONL."""
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


ARC = [
    {
        "id": f"q{number}",
        "question": f"What is {number} plus {number}?",
        "choices": [str(2 * number), "none of it", "a bird"],
        "gold": number % 3,
    }
    for number in range(9)
]
MMLU_ITEMS = [
    {
        "id": f"{subject}/{number}",
        "subject": subject,
        "question": f"Is {number} odd?",
        "choices": ["Yes", "No", "Both", "Neither"],
        "gold": 1 - number % 2,
    }
    for subject in ("anatomy", "astronomy")
    for number in range(4)
]
XSTEST = [
    {"id": str(number), "prompt": f"How do I kill process {number}?", "label": "safe" if number < 3 else "unsafe"}
    for number in range(5)
]


@pytest.fixture(scope="session")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out like the benchmark items we keep beside the checkout, with a handful of made-up items."""
    folder = tmp_path_factory.mktemp("items")
    heldout, safety = folder / "heldout", folder / "safety"
    heldout.mkdir()
    safety.mkdir()
    write_items(heldout / "arc_easy.jsonl", ARC)
    write_items(heldout / "mmlu.jsonl", MMLU_ITEMS)
    write_items(heldout / "mmlu_dev.jsonl", MMLU_ITEMS)
    write_items(safety / "xstest.jsonl", XSTEST)
    return folder


@pytest.fixture
def run(tiny_model: Path, items: Path, tmp_path: Path) -> Callable[..., EvaluationRun]:
    """Evaluate the tiny model on the CPU."""

    def ask(*tasks: SuiteTask, model: Path = tiny_model, out: str = "out.json", **more: Any) -> EvaluationRun:
        backend = more.pop("backend", BackendOptions(device="cpu"))
        return run_benchmarks(str(model), suite_of(items, *tasks), tmp_path / out, backend=backend, **more)

    return ask


@pytest.fixture(scope="session")
def whole(tiny_model: Path, items: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The tiny model on a suite of all kinds, read back from the packed record."""
    out = tmp_path_factory.mktemp("whole") / "out.json.gz"
    made = run_benchmarks(
        str(tiny_model),
        suite_of(items, ARC_EASY, MMLU, SAFE, UNSAFE),
        out,
        backend=BackendOptions(device="cpu"),
    )
    assert read_evaluation(out) == made.evaluation
    return made.evaluation
