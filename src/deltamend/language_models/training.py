"""Full fine-tuning on the CPU: fp32 weights, bf16 autocast where the processor has bf16, loss on the answers only."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from deltamend.language_models.loading import chat_prompt, plain_tokens
from deltamend.machine.processor import computes_in_bf16
from deltamend.machine.threads import one_thread_each

_Item = TypeVar("_Item")
GIVEN, PADDING = -1, -2  # labels of positions that do not count in the loss


@dataclass(frozen=True)
class Example:
    """Token ids of one training text: the prompt, which is given, and the answer, which the model learns to write."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run.

    Attributes:
        steps: optimiser steps.
        batch: examples in each step.
        lr: AdamW's learning rate after the warm-up; it decays linearly to zero.
        warmup: steps of linear warm-up.
        threads: 1 or 2. Each thread takes its share of the batch from end to end, so they meet once a step; threads
            that share single operations meet thousands of times a step, which on a busy machine costs ten times as much.
            With two shares the sum of their gradients does not depend on who is first, so the result is the same.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 10
    threads: int = 1


def chat_example(tokenizer: Any, question: str, answer: str) -> Example:
    """One chat turn: the model learns the answer and the end-of-turn token after it."""
    learnt = [*plain_tokens(tokenizer, answer), tokenizer.eos_token_id]
    return Example(prompt=chat_prompt(tokenizer, question), answer=learnt)


def train(model: Any, examples: Sequence[Example], recipe: Recipe, *, seed: int, advance: Callable[[], None]) -> None:
    """Train every weight of `model` (fp32, changed in place) and leave it in evaluation mode.

    `advance` is called after each step. The order of the examples depends on `seed` alone; these models have no dropout,
    so nothing else is random.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, recipe))
    with (
        one_thread_each(),
        ThreadPoolExecutor(recipe.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        for batch in batches(examples, recipe.steps, recipe.batch, seed=seed):
            tokens = sum(len(example.answer) for example in batch)
            shares = [batch[start :: recipe.threads] for start in range(recipe.threads)]
            list(pool.map(lambda share, tokens=tokens: _backward(model, share, tokens), shares))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            advance()
    model.eval()


def answer_loss(model: Any, batch: Sequence[Example]) -> torch.Tensor:
    """Cross-entropy in nats, summed over the answers' tokens.

    The vocabulary projection is the dearest layer of a small model, so it runs at the answers' positions only. Computed in
    bf16 autocast where the processor multiplies bf16 matrices, in fp32 elsewhere.
    """
    ids, labels = collate(batch)
    counted = labels[:, 1:] >= 0
    # Without the cache of cast weights: it is shared between threads, and each weight is cast once a pass anyway.
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False, enabled=computes_in_bf16()):
        hidden = model.base_model(input_ids=ids, attention_mask=(labels != PADDING).long()).last_hidden_state
        logits = model.get_output_embeddings()(hidden[:, :-1][counted])
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][counted], reduction="sum")


def collate(batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad the batch on the right: (ids, labels), both (batch, longest) int64.

    A label is the token itself in an answer, GIVEN in a prompt, and PADDING after the end.
    """
    longest = max(len(example.prompt) + len(example.answer) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    labels = torch.full((len(batch), longest), PADDING, dtype=torch.long)
    for row, example in enumerate(batch):
        start, end = len(example.prompt), len(example.prompt) + len(example.answer)
        ids[row, :end] = torch.tensor(example.prompt + example.answer)
        labels[row, :start] = GIVEN
        labels[row, start:end] = torch.tensor(example.answer)
    return ids, labels


def _backward(model: Any, share: Sequence[Example], tokens: int) -> None:
    """Add this share's part of the gradient of the batch's mean loss over `tokens` answer tokens."""
    (answer_loss(model, share) / tokens).backward()  # type: ignore[no-untyped-call]


def batches(examples: Sequence[_Item], steps: int, batch: int, *, seed: int) -> Iterator[list[_Item]]:
    """`steps` batches, drawn without replacement until the examples run out, then reshuffled."""
    order = random.Random(seed)  # noqa: S311 - a reproducible order, not a secret
    queue: list[_Item] = []
    for _ in range(steps):
        while len(queue) < batch:
            queue.extend(order.sample(list(examples), len(examples)))
        yield queue[:batch]
        del queue[:batch]


def _lr_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then linear decay to zero at the last step."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return max(0.0, (recipe.steps - step) / max(1, recipe.steps - recipe.warmup))
