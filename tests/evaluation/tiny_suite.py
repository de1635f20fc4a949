"""A suite of one task of each kind, and the tiny model evaluated on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltamend.evaluation.suite import Suite, SuiteTask

ARC_EASY = SuiteTask(name="arc", task="arc_easy", file="arc_easy.jsonl", metric="acc")
MMLU = SuiteTask(name="mmlu", task="mmlu", file="mmlu.jsonl", fewshot_file="mmlu_dev.jsonl", fewshot=1)
SAFE = SuiteTask(name="safe", task="xstest_safe", file="xstest.jsonl", chat=True, max_tokens=4)
UNSAFE = SuiteTask(name="unsafe", task="xstest_unsafe", file="xstest.jsonl", chat=True, max_tokens=4)


def suite_of(items: Path, *tasks: SuiteTask) -> list[Suite]:
    return [Suite(name="test", version="1", tasks=tasks, folders=(items,))]


def loaded_model(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """log P(continuation | context) by one forward pass, nothing of lm-eval's."""
    start = len(tokenizer(context).input_ids)
    tokens = tokenizer(context + continuation, return_tensors="pt").input_ids
    with torch.no_grad():
        log_probs = torch.log_softmax(model(tokens).logits[0, :-1].float(), dim=-1)
    return float(log_probs[start - 1 :].gather(1, tokens[0, start:, None]).sum())
