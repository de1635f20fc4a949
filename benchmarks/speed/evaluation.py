"""Tokens a second of likelihood benchmarks through `deltamend evaluate`, against a bare batched forward pass.

    python -m benchmarks.speed.evaluation MODEL DATA [--limit 100] [--rounds 3]

Both read the same sequences of ARC-Challenge: the prompt with each choice, without its last token, as lm-eval feeds
them to the model. The bare pass gets them as tokens, sorted by length and padded into batches of at most 1,024 tokens.
It computes all logits, as a plain call does, and does nothing with them. The time of an evaluation is that of
lm-eval's whole call: making prompts, tokenising, the softmax, scores and the record's items. Loading the model and the
files is left out on both sides.

Tokens are counted without padding. The two alternate, so that other work on the machine slows both.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from benchmarks.shared.arguments import script_parser
from deltamend.evaluation.backend import BackendOptions, open_backend
from deltamend.evaluation.lm_eval_tasks import TaskLoader
from deltamend.evaluation.one_benchmark import AskOptions, ask_benchmark
from deltamend.evaluation.suite import SuiteTask
from deltamend.evaluation.third_party_output import third_parties_quiet

TASK = SuiteTask(name="arc_challenge", task="arc_challenge", file="arc_challenge.jsonl", metric="acc_norm")
BATCH_TOKENS = 1024


def batches(sequences: list[list[int]]) -> list[torch.Tensor]:
    """The sequences, longest first, padded on the right with 0 into batches of at most BATCH_TOKENS."""
    made: list[list[list[int]]] = []
    for sequence in sorted(sequences, key=len, reverse=True):
        if not made or (len(made[-1]) + 1) * len(made[-1][0]) > BATCH_TOKENS:
            made.append([])
        made[-1].append(sequence)
    return [torch.tensor([sequence + [0] * (len(batch[0]) - len(sequence)) for sequence in batch]) for batch in made]


def main() -> None:
    """Time both, alternating, and print their medians and the ratio."""
    parser = script_parser(__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("data", type=Path, help="folder of the benchmarks' JSONL files")
    parser.add_argument("--limit", type=int, default=100, help="number of items")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds, each with both")
    given = parser.parse_args()
    asking = AskOptions(limit=given.limit)
    with third_parties_quiet():
        lm = open_backend(str(given.model.absolute()), BackendOptions(device="cpu"), lambda _share: None)
        loaded = TaskLoader().load(TASK, (given.data,))
        docs = loaded.members["arc_challenge"].eval_docs
        total, asked = len(docs), min(given.limit, len(docs))
        chosen = [docs[index * total // asked] for index in range(asked)]
        texts = [
            f"Question: {doc['question']}\nAnswer: {choice}" for doc in chosen for choice in doc["choices"]["text"]
        ]
        # lm-eval reads a prompt once for all choices of one token, so each sequence counts once.
        sequences = [list(tokens) for tokens in dict.fromkeys(tuple(lm.tok_encode(text)[:-1]) for text in texts)]
        tokens, fed = sum(map(len, sequences)), batches(sequences)
        seconds: dict[str, list[float]] = {"bare forward pass": [], "deltamend evaluate": []}
        for round_ in range(given.rounds + 1):  # the first warms both up
            started = time.perf_counter()
            with torch.no_grad():
                for batch in fed:
                    lm.model(batch)
            between = time.perf_counter()
            ask_benchmark(lm, loaded, asking)
            ended = time.perf_counter()
            if round_:
                seconds["bare forward pass"].append(between - started)
                seconds["deltamend evaluate"].append(ended - between)
    padded = sum(batch.numel() for batch in fed)
    print(f"{len(sequences)} sequences, {tokens} tokens, {padded} with padding; {torch.get_num_threads()} thread(s)")
    for name, times in seconds.items():
        print(
            f"{name:20}{tokens / statistics.median(times):8.0f} tokens/s, rounds: {', '.join(f'{tokens / each:.0f}' for each in times)}"
        )
    ratios = [bare / ours for bare, ours in zip(*seconds.values(), strict=True)]
    print(f"ratio {statistics.median(ratios):.2f}, rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
