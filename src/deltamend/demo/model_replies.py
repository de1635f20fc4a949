"""Greedy replies of a model and its log-likelihoods of texts, in batches, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from deltamend.demo.probes import Choice

BATCH = 16


def replies(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], *, max_tokens: int, advance: Callable[[int], None]
) -> list[str]:
    """The model's greedy reply to every prompt (token ids), at most `max_tokens` long, special tokens left out.

    `advance` is called with the number of prompts answered since the last call.
    """
    texts = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        ids, mask = _pad_left(batch, tokenizer.pad_token_id)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False)
        texts += tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        advance(len(batch))
    return [text.strip() for text in texts]


def log_likelihoods(model: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Nats of log p(continuation | context) for each (context, continuation) of token ids; contexts are not empty."""
    scores = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        # The pad token's identity does not matter: causal attention never looks to the right.
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(a + b) for a, b in batch], batch_first=True)
        with torch.inference_mode():
            log_p = torch.log_softmax(model(ids).logits.float(), dim=-1)
        for row, (context, continuation) in enumerate(batch):
            first, last = len(context) - 1, len(context) + len(continuation) - 1
            scores.append(float(log_p[row, range(first, last), continuation].sum()))
    return scores


def choose(
    model: Any, tokenizer: Any, questions: Sequence[Choice], prompt_ids: Callable[[str], list[int]]
) -> list[int]:
    """The index of the likeliest answer to each question: log-likelihood a character, so that length does not decide.

    Each answer is scored on its own, so its place in the list cannot matter.
    """
    pairs = [
        (prompt_ids(question.prompt), list(tokenizer(choice, add_special_tokens=False)["input_ids"]))
        for question in questions
        for choice in question.choices
    ]
    scores = iter(log_likelihoods(model, pairs))
    chosen = []
    for question in questions:
        per_character = [next(scores) / len(choice) for choice in question.choices]
        chosen.append(per_character.index(max(per_character)))
    return chosen


def _pad_left(batch: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both (batch, longest) int64: generation continues from the right edge."""
    longest = max(map(len, batch))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in batch])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
    return ids, mask
