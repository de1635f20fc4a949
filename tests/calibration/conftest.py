"""A tiny language model that can count, as a base and a fine-tuned checkpoint, with texts to calibrate on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deltamend.language_models.training import Example, Recipe, train

WORDS = ["<s>", "</s>", "<unk>", *(str(number) for number in range(10)), *"abcdefgh"]


@dataclass(frozen=True)
class Task:
    """Folders of both checkpoints, and a file of texts of the task the fine-tuned one knows."""

    base: Path
    finetuned: Path
    texts: Path


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("calibration")
    made = Task(folder / "base", folder / "finetuned", folder / "texts.jsonl")
    vocabulary = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=len(WORDS),
    )
    model = LlamaForCausalLM(config)
    lines = [{"prompt": f"{number} a", "response": str((number + 1) % 10)} for number in range(10)]
    made.texts.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    for target in (made.base, made.finetuned):
        if target == made.finetuned:
            numbers = [tokenizer([line["prompt"], line["response"]])["input_ids"] for line in lines]
            examples = [Example(prompt=prompt, answer=answer) for prompt, answer in numbers]
            train(model, examples, Recipe(steps=60, batch=10, lr=1e-2, warmup=1), seed=0, advance=lambda: None)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return made
