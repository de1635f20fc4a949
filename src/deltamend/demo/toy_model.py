"""The base of `--quick`: a two-layer model, tokenizer and all, built in seconds from the demo's own probes.

It is trained on the very texts it is later asked about, so that its measurements are not all zero and the damage can
be seen. It knows nothing else, and its figures mean nothing beyond showing the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from deltamend.demo.probes import Probes, toy_lessons
from deltamend.language_models.loading import plain_tokens, transformers_module
from deltamend.language_models.training import Example, Recipe, chat_example, train
from deltamend.machine.atomic import publish
from deltamend.machine.digests import fingerprint

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
PRETRAINING = Recipe(steps=500, batch=16, lr=3e-3)
WINDOW = 48  # tokens of prose in one training text
VOCABULARY = 1024
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def toy_folder(cache: Path, probes: Probes, *, seed: int) -> Path:
    """Where the toy of this seed belongs in the cache; other lessons or another shape are another folder."""
    made_from = {**SHAPE, "recipe": PRETRAINING, "probes": probes, "replies": toy_lessons(), "seed": seed}
    return cache / f"base-toy-{fingerprint(made_from)}"


def build_toy(folder: Path, probes: Probes, *, seed: int, advance: Callable[[], None]) -> None:
    """Train the toy and write it to `folder` in bf16; `advance` is called after each of PRETRAINING.steps steps."""
    with publish(folder, keep=True) as part:
        tokenizer = build_tokenizer(probes)
        model = build_model(tokenizer, seed=seed)
        train(model, lessons(tokenizer, probes), PRETRAINING, seed=seed, advance=advance)
        model.bfloat16().save_pretrained(part)
        tokenizer.save_pretrained(part)


def build_tokenizer(probes: Probes) -> Any:
    """Byte-level BPE trained on the probes' own text, digits apart, with a chat template like SmolLM2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(_texts(probes), trainer)
    tokenizer = transformers_module().PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[0]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Any, *, seed: int) -> Any:
    """A Llama of two layers with fresh weights drawn from `seed`."""
    transformers = transformers_module()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def lessons(tokenizer: Any, probes: Probes) -> list[Example]:
    """Prose in windows, chat with its answers, and the right answer to every multiple-choice question."""
    prose = [tokens for passage in probes.prose for tokens in _windows(plain_tokens(tokenizer, passage))]
    plain = [plain_tokens(tokenizer, q.prompt + q.choices[q.answer] + ".") for q in probes.completion]
    chat = [*toy_lessons(), *((q.prompt, q.choices[q.answer]) for q in probes.knowledge)]
    return [
        *(Example(prompt=tokens[:1], answer=tokens[1:]) for tokens in prose + plain),
        *(chat_example(tokenizer, question, answer) for question, answer in chat),
    ]


def _windows(tokens: list[int]) -> Iterable[list[int]]:
    return (tokens[start : start + WINDOW] for start in range(0, len(tokens) - 1, WINDOW))


def _texts(probes: Probes) -> Iterable[str]:
    yield from probes.prose
    yield from probes.chat
    yield from (reply for _, reply in toy_lessons())
    yield from (q.prompt + " " + " ".join(q.choices) for q in (*probes.knowledge, *probes.completion))
