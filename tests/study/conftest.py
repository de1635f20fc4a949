"""A study small enough to run in a test: a tiny model, sums of one digit, two benchmarks of a few items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltamend.study.config import Study
from tests.evaluation.conftest import ARC, XSTEST, items, tiny_model, write_items

__all__ = ["items", "tiny_model"]


def tiny_config(model: Path, **changes: Any) -> dict[str, Any]:
    """What the YAML file of a tiny study holds."""
    return {
        "name": "tiny",
        "models": [{"name": "tiny", "source": str(model)}],
        "targets": [
            {
                "name": "sums",
                "train": {"sums": [0, 9]},
                "test": {"sums": [0, 9]},
                "question": "{{a}}+{{b}}?",
                "answer": "{{sum}}",
                "test_items": 8,
                "max_tokens": 3,
                "form": r"\d+",
            }
        ],
        "regimes": [{"name": "fp32", "lr": 0.01, "steps": 12, "batch": 4, "warmup": 1}],
        "seeds": [0],
        "exam": {
            "general": {"items": {"files": ["general.jsonl"]}, "count": 8, "max_tokens": 4},
            "tasks": [{"name": "arc", "task": "arc_easy", "file": "arc_easy.jsonl", "metric": "acc"}],
            "safety": [
                {"name": "xstest_safe", "task": "xstest_safe", "file": "xstest.jsonl", "chat": True, "max_tokens": 4}
            ],
        },
        "own_texts": {"samples": 3, "tokens": 6},
        "repairs": [
            {"name": "dg-hard", "method": "dg-hard"},
            {"name": "null-space", "method": "null-space", "parameters": {"activations": "own"}},
            {"name": "wise-ft-0.5", "method": "wise-ft", "parameters": {"alpha": 0.5}, "safety": True},
        ],
        **changes,
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Items of the tiny study."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_items(folder / "general.jsonl", [{"id": f"g{n}", "question": f"Say {n}."} for n in range(10)])
    write_items(folder / "arc_easy.jsonl", ARC)
    write_items(folder / "xstest.jsonl", XSTEST)
    return folder


@pytest.fixture
def study(tiny_model: Path) -> Study:
    """The tiny study."""
    return Study.model_validate(tiny_config(tiny_model))
