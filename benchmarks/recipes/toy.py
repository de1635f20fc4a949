"""A toy of forgetting: a small network learns patterns with noise, and then the same patterns with their pixels in another order.

It is made on the spot, after the permuted digits of the papers: ten patterns of 64 pixels, of which an example is one with noise. The
network is a chain of residual blocks, so that every recipe finds in it what it looks for in a language model: a head, layers and units.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deltamend.recipes.recipe import AdapterSettings, Recipe, RunningRecipe, TrainingRun, Units

PIXELS, CLASSES, WIDTH, HIDDEN, DEPTH = 64, 10, 48, 64, 4
NOISE = 2.0
BATCH, LR, STEPS = 32, 2e-3, 150


@dataclass(frozen=True)
class Example:
    """One pattern with noise: pixels, (64,) float32, and its class."""

    pixels: torch.Tensor
    label: int


class Block(nn.Module):
    """x + down(relu(up(x)))."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, 48) to (…, 48)."""
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Network(nn.Module):
    """Logits of ten classes from 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PIXELS, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, 64) to (…, 10)."""
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        result: torch.Tensor = self.head(x)
        return result


def network(seed: int) -> Network:
    """A network with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network()


def task(seed: int, count: int, *, permuted: bool) -> list[Example]:
    """Examples of the first task, or of the second, whose pixels are in another order; the patterns are those of the seed."""
    made = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, PIXELS, generator=made)
    order = torch.randperm(PIXELS, generator=made) if permuted else torch.arange(PIXELS)
    drawn = torch.Generator().manual_seed(1_000_003 * (seed + 1) + 2 * count + permuted)
    labels = torch.randint(CLASSES, (count,), generator=drawn)
    pixels = (patterns[labels] + NOISE * torch.randn(count, PIXELS, generator=drawn))[:, order]
    return [Example(one, int(label)) for one, label in zip(pixels, labels, strict=True)]


def outputs(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Logits, (examples, 10)."""
    result: torch.Tensor = model(torch.stack([example.pixels for example in examples]))
    return result


def loss(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Mean cross-entropy in nats."""
    return nn.functional.cross_entropy(outputs(model, examples), torch.tensor([one.label for one in examples]))


def accuracy(model: Any, examples: Sequence[Example]) -> float:
    """Share of the examples that are told right."""
    with torch.no_grad():
        found = outputs(model, examples).argmax(-1)
    return float((found == torch.tensor([one.label for one in examples])).float().mean())


def units() -> tuple[Units, ...]:
    """The hidden neurons of every block."""
    names = [f"layers.{layer}" for layer in range(DEPTH)]
    return tuple(
        Units(
            layer,
            "mlp",
            f"{name}.down",
            HIDDEN,
            ((f"{name}.down.weight", 1), (f"{name}.up.weight", 0), (f"{name}.up.bias", 0)),
        )
        for layer, name in enumerate(names)
    )


def run_of(model: nn.Module, old: Sequence[Example], *, seed: int = 0, steps: int = STEPS) -> TrainingRun:
    """A training of the network, as recipes take it; the old examples are one task."""
    return TrainingRun(
        model=model,
        steps=steps,
        batch=BATCH,
        lr=LR,
        seed=seed,
        loss=loss,
        outputs=outputs,
        old=(tuple(old),),
        head=("head.weight", "head.bias"),
        units=units(),
    )


def with_adapter(model: nn.Module, adapter: AdapterSettings | None) -> nn.Module:
    """The network with a LoRA adapter on all layers but the head, where a recipe wants one."""
    if adapter is None:
        return model
    import peft

    config = peft.LoraConfig(r=adapter.rank, lora_alpha=int(adapter.alpha), target_modules=["embed", "up", "down"])
    found: nn.Module = peft.get_peft_model(model, config)
    return found


def batches(examples: Sequence[Example], steps: int, seed: int) -> Iterator[list[Example]]:
    """A batch for each step."""
    order = random.Random(seed)
    for _ in range(steps):
        yield order.sample(list(examples), BATCH)


def train(
    run: TrainingRun,
    recipe: Recipe,
    new: Sequence[Example],
    *,
    watch: Callable[[int], None] | None = None,
) -> RunningRecipe:
    """Train by a recipe: AdamW, and gradients clipped to norm 1.

    Args:
        run: the training; its model is changed.
        recipe: what is done besides.
        new: the examples to learn from.
        watch: called after each step.

    Returns:
        The recipe as it ran.
    """
    running = recipe.start(run)
    optimizer = torch.optim.AdamW(list(run.trained().values()), lr=run.lr, weight_decay=0.0)
    for step, batch in enumerate(batches(new, run.steps, run.seed)):
        running.before_step(step)
        optimizer.zero_grad()
        run.loss(run.model, batch).backward()  # type: ignore[no-untyped-call]
        running.after_backward(step)
        nn.utils.clip_grad_norm_([one for one in run.model.parameters() if one.grad is not None], 1.0)
        optimizer.step()
        running.after_step(step)
        if watch is not None:
            watch(step)
    return running
