"""Records of made-up models, for the tests of the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deltamend.evaluation.record import Evaluation, ItemScore, TaskScores
from deltamend.scoring.metric import FloatArray


def task(scores: Sequence[float] | FloatArray, *, chance: float | None = None, weak: str | None = None) -> TaskScores:
    """Items 0, 1, 2 … with these scores."""
    items = tuple(ItemScore(id=str(i), prompt_hash=f"h{i}", score=float(score)) for i, score in enumerate(scores))
    return TaskScores(metric="acc", version="1", fewshot=0, chance=chance, weak=weak, items=items)


def record(tasks: Mapping[str, TaskScores], *, model: str = "model") -> Evaluation:
    """A record of one model."""
    return Evaluation(model=model, suite="made up", suite_version="1", seed=0, tasks=dict(tasks))


def correlated(rates: Sequence[float], items: int, random: np.random.Generator) -> FloatArray:
    """(items, models) right-or-wrong scores whose means are near `rates`; models tend to fail on the same items."""
    hardness = 0.7 * random.random((items, 1)) + 0.3 * random.random((items, len(rates)))
    order = np.argsort(np.argsort(hardness, axis=0), axis=0) / items
    return np.asarray(order < np.asarray(rates), dtype=np.float64)


MODELS = ("base", "finetuned", "good", "poor")
RATES = {
    "arc": (0.62, 0.40, 0.58, 0.44),
    "mmlu": (0.55, 0.45, 0.54, 0.46),
    "gsm8k": (0.30, 0.42, 0.40, 0.33),
    "mnli": (0.60, 0.60, 0.60, 0.55),
    "sums": (0.10, 0.80, 0.75, 0.60),
}


def made_up_cell(items: int = 200, seed: int = 0) -> dict[str, Evaluation]:
    """Base, fine-tuned and two repairs on four benchmarks and the target `sums`."""
    random = np.random.default_rng(seed)
    scores = {name: correlated(rates, items, random) for name, rates in RATES.items()}
    return {
        model: record({name: task(values[:, column]) for name, values in scores.items()}, model=f"org/{model}")
        for column, model in enumerate(MODELS)
    }
