"""Gradients over many examples, some at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.recipes.toy import Example, Network, run_of
from deltamend.language_models.training import Example as Text
from deltamend.recipes.gradients import gradients_of, loss_gradient
from deltamend.recipes.language_model_run import run_of_language_model
from tests.conftest import llama


@pytest.mark.parametrize("at_once", [1, 5, 12, None])
def test_parts_give_the_gradient_of_the_whole(at_once: int | None, model: Network, old: list[Example]) -> None:
    run = replace(run_of(model, old), at_once=at_once)
    wanted = gradients_of(run.loss(model, old), run.trained())
    found = loss_gradient(run, old, run.trained())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_part_counts_by_its_tokens_and_not_by_its_texts() -> None:
    model = llama(torch.float32)
    texts = [Text(prompt=[1], answer=list(range(3, 3 + length))) for length in (2, 9, 4)]
    settings = {"steps": 1, "batch": 3, "lr": 1e-3, "seed": 0, "autocast": False}
    run = run_of_language_model(model, [texts], at_once=2, **settings)  # type: ignore[arg-type]
    wanted = gradients_of(run.loss(model, texts), run.trained())
    found = loss_gradient(run, texts, run.trained())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)
