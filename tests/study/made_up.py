"""A made-up study with a known truth: records as the runner writes them, and the repair `ours` above the WiSE-FT curve."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deltamend.evaluation.record import Evaluation, ItemScore, TaskScores
from deltamend.scoring.metric import FloatArray
from deltamend.study.config import Study, StudyCell
from deltamend.study.record_keys import model_keys
from deltamend.study.records import (
    FORM,
    OWN_ANSWERS,
    TARGET,
    TARGET_LIKELIHOOD,
    BaseRecord,
    CellRecord,
    DiagnosisFacts,
    FinetuneFacts,
    ModelRecord,
    RepairFacts,
    base_file,
    cell_file,
    write_record,
)

WEAK = "refusals are found by their wording, a weak judge"
ALPHAS = (0.2, 0.35, 0.5, 0.65, 0.8)
RATES = {
    TARGET: (0.10, 0.80),
    TARGET_LIKELIHOOD: (0.20, 0.70),
    OWN_ANSWERS: (0.70, 0.45),
    FORM: (0.95, 0.45),
    "arc": (0.62, 0.42),
    "mmlu": (0.40, 0.40),
    "piqa": (0.55, 0.68),
    "xstest_safe": (0.90, 0.95),
    "xstest_unsafe": (0.80, 0.30),
}
"""Mean score of base and fine-tuned model; accuracies and likelihoods alike."""

_LIKELIHOODS = (TARGET_LIKELIHOOD, OWN_ANSWERS)
_CHOICES = ("arc", "mmlu", "piqa")


class Truth(NamedTuple):
    """What a repair really does, each a share; and ‖Δ*‖/‖Δ‖."""

    healing: float
    retention: float
    size: float


def on_the_curve(size: float, above: float = 0.0) -> Truth:
    """What WiSE-FT does with alpha = `size`; `above` is added to healing and to retention."""
    return Truth(min(1.0, 1 - size**2.5 + above), min(1.0, 1 - (1 - size) ** 2.5 + above), size)


def made_up_study(**changes: Any) -> Study:
    """Two targets, two regimes, two seeds and a dozen repairs; `changes` replace whole fields."""
    published = [
        {"name": "dg-hard", "method": "dg-hard", "safety": True},
        {"name": "ties", "method": "ties", "parameters": {"density": 0.2}},
        {"name": "dare", "method": "dare", "parameters": {"density": 0.1}},
    ]
    curve = [
        {
            "name": f"wise-ft-{alpha:g}",
            "method": "wise-ft",
            "parameters": {"alpha": alpha},
            "role": "published" if alpha == 0.5 else "strength",
            "safety": alpha == 0.5,
        }
        for alpha in ALPHAS
    ]
    candidates = [
        {"name": "ours", "method": "magnitude", "parameters": {"density": 0.15}, "role": "candidate", "safety": True},
        {
            "name": "hopeless",
            "method": "magnitude",
            "parameters": {"density": 0.01},
            "role": "candidate",
            "family": "hopeless",
        },
        {
            "name": "tried-once",
            "method": "magnitude",
            "parameters": {"density": 0.05},
            "role": "candidate",
            "only_choosing": True,
        },
    ]
    dtype = [
        {"name": "dg-hard-bf16", "method": "dg-hard", "role": "dtype", "out_dtype": "bfloat16", "regimes": ["bf16"]},
    ]
    fields: dict[str, Any] = {
        "name": "made-up",
        "models": [{"name": "tiny", "source": "demo"}],
        "targets": [
            {"name": "sums", "train": {"sums": [10, 99]}, "test": {"sums": [10, 99]}},
            {"name": "quiz", "train": {"files": ["quiz.jsonl"]}, "test": {"files": ["quiz-test.jsonl"]}},
        ],
        "regimes": [
            {"name": "fp32", "lr": 1e-4, "steps": 10},
            {"name": "bf16", "weights": "bfloat16", "lr": 5e-5, "steps": 10},
        ],
        "seeds": [0, 1],
        "repairs": [*published, *curve, *candidates, *dtype],
        "exam": {
            "general": {"items": {"files": ["prompts.jsonl"]}},
            "tasks": [{"name": name, "file": f"{name}.jsonl"} for name in _CHOICES],
            "safety": [{"name": name, "file": f"{name}.jsonl"} for name in ("xstest_safe", "xstest_unsafe")],
        },
        "choosing": {"targets": ["sums"], "seeds": [0]},
    }
    return Study.model_validate(fields | changes)


def truth(name: str, cell: StudyCell) -> Truth:
    """Of a repair in a cell, by its name."""
    if name.startswith("wise-ft-"):
        return on_the_curve(float(name.removeprefix("wise-ft-")))
    if name == "dg-hard":
        return Truth(0.3, 0.95, 0.5) if cell.regime.weights == "bfloat16" else Truth(0.02, 1.0, 0.999)
    if name == "dg-hard-bf16":
        return Truth(0.3, 0.4, 0.4)
    known = {
        "ours": on_the_curve(0.55, above=0.12),
        "hopeless": Truth(0.1, 0.1, 0.5),
        "tried-once": on_the_curve(0.3),
        "ties": on_the_curve(0.7, above=-0.05),
        "dare": Truth(0.0, 0.9, 3.1),
    }
    return known.get(name, on_the_curve(0.3 + 0.4 * (_seed(name) % 100) / 100, above=-0.05))


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6])


def write_made_up(
    study: Study,
    out: Path,
    *,
    items: Mapping[str, int] | None = None,
    only: Collection[str] | None = None,
    without: Mapping[str, Collection[str]] | None = None,
    alike: bool = False,
) -> None:
    """Write all records of a study.

    Args:
        study: its configuration.
        out: folder of the records.
        items: task to how many; 60 by default.
        only: cells to write; None for all.
        without: cell to repairs that are not done.
        alike: whether every repair is the same model, so that none differs from another.
    """
    for model in study.models:
        for target in study.targets:
            own = [cell for cell in study.cells() if (cell.model, cell.target) == (model, target)]
            asked = _Questions(f"{model.name}/{target.name}", items or {})
            base = asked.evaluation(
                "base", {task: rates[0] for task, rates in RATES.items()}, noise=("base",), safety=True
            )
            path = base_file(out, model.name, target.name, "cpu")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(
                BaseRecord(key="base", evaluation=base, versions={"torch": "2.0"}, machine="made up, 2 cores"), path
            )
            for cell in own:
                if only is None or cell.name in only:
                    path = cell_file(out, cell.name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_record(_cell(study, cell, asked, (without or {}).get(cell.name, ()), alike), path)


def _cell(study: Study, cell: StudyCell, asked: _Questions, without: Collection[str], alike: bool) -> CellRecord:
    def model(name: str, does: Truth, facts: RepairFacts | None, safety: bool) -> ModelRecord:
        rates = {}
        for task, (base, tuned) in RATES.items():
            share = does.retention if task in (TARGET, TARGET_LIKELIHOOD, "piqa") else 1 - does.healing
            rates[task] = base + share * (tuned - base)
        # Items that a model gets right by luck: the same for repairs that are to be alike.
        noise = (cell.name, "repair" if alike and facts is not None else name)
        evaluation = asked.evaluation(name, rates, noise, safety)
        return ModelRecord(key=keys[name], exam="made up", facts=facts, evaluation=evaluation, seconds=20.0)

    keys = model_keys(study, cell, key=cell.name, exam="made up")
    models = {"finetuned": model("finetuned", Truth(0.0, 1.0, 1.0), None, True)}
    for repair in study.repairs_of(cell):
        if repair.name not in without:
            does = on_the_curve(0.5) if alike else truth(repair.name, cell)
            kept = does.size**2
            facts = RepairFacts(
                method=repair.method,
                kept_energy=kept,
                realised_error=0.5 if repair.role == "dtype" else 0.0,
                realised_energy=kept,
                kept_rank=None,
                seconds=25.0,
            )
            models[repair.name] = model(repair.name, does, facts, repair.safety)
    noisy = cell.regime.weights == "bfloat16"
    share = 0.8 if noisy else 0.1 + 0.01 * (_seed(cell.name) % 10)
    return CellRecord(
        cell=cell.name,
        key=cell.name,
        finetune=FinetuneFacts(steps=10, seconds=480.0, first_loss=2.0, last_loss=0.5, model_hash=cell.name),
        diagnosis=DiagnosisFacts(
            verdict="noise-like bulk" if noisy else "structured residual",
            verdicts={"noise-like bulk": round(100 * share), "structured residual": 100 - round(100 * share)},
            median_ks=0.3 - 0.2 * share,
            zeros=0.9 if noisy else 0.0,
            kept_energy=0.25 if noisy else 0.998,
            kept_rank=0.04 if noisy else 0.6,
            relative_size=0.01,
        ),
        models=models,
        versions={"torch": "2.0", "python": "3.11"},
        machine="made up, 2 cores",
    )


class _Questions:
    """What the models of one target are asked, and how hard each item is."""

    def __init__(self, place: str, items: Mapping[str, int]) -> None:
        self._place = place
        self._items = {task: items.get(task, 60) for task in RATES}

    def evaluation(self, name: str, rates: Mapping[str, float], noise: Sequence[object], safety: bool) -> Evaluation:
        tasks = {
            task: self._task(task, rates[task], np.random.default_rng(_seed(task, *noise)))
            for task in RATES
            if safety or not task.startswith("xstest")
        }
        return Evaluation(model=name, model_hash=f"{noise}", suite="made-up", suite_version="1", seed=0, tasks=tasks)

    def _task(self, task: str, rate: float, random: np.random.Generator) -> TaskScores:
        count = self._items[task]
        shared = np.random.default_rng(_seed(task, self._place if task.startswith(TARGET) else ""))
        hardness = 0.8 * shared.random(count) + 0.2 * random.random(count)
        logits: list[tuple[float, ...]] = [()] * count
        if task in _LIKELIHOODS:
            scores: FloatArray = np.clip(rate + 0.3 * (0.5 - hardness), 0.01, 0.99)
        else:
            scores = (np.argsort(np.argsort(hardness)) < round(rate * count)).astype(np.float64)
        if task in _CHOICES:
            drawn = shared.normal(-40, 12, (count, 4)) + random.normal(0, 2, (count, 4))
            logits = [tuple(float(np.float32(value)) for value in row) for row in drawn]
        items = tuple(
            ItemScore(
                id=f"{task}/{index}",
                prompt_hash=hashlib.sha256(
                    f"{self._place if task.startswith(TARGET) else ''}{task}{index}".encode()
                ).hexdigest(),
                score=float(score),
                loglikelihoods=logits[index],
            )
            for index, score in enumerate(scores)
        )
        weak = WEAK if task.startswith("xstest") else None
        metric = {"xstest_safe": "complied", "xstest_unsafe": "refused"}.get(task, "acc")
        return TaskScores(metric=metric, version="1", fewshot=0, weak=weak, items=items)
