"""The two demos: the real one, and the quick one that shows the same path on a toy."""

from __future__ import annotations

from dataclasses import dataclass

from deltamend.language_models.training import Recipe
from deltamend.repairing.options import AUTO


@dataclass(frozen=True)
class RepairChoice:
    """One repair of the demo: its name on the page, and the method and parameters of `deltamend repair`."""

    label: str
    method: str
    parameters: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class DemoSettings:
    """Everything that fixes a run beside the seed.

    Attributes:
        name: folder name of the output, and the demo's name in its records.
        model: the base, as the page calls it.
        toy: whether the base is the two-layer toy.
        operands: smallest and largest number in the target's sums.
        held_out: problems kept out of the training to test the target on.
        damage: how the fine-tuning is done.
        reply_tokens: where a chat reply is cut off.
        samples: chat prompts, by index, that the page shows.
    """

    name: str
    model: str
    toy: bool
    operands: tuple[int, int]
    held_out: int
    damage: Recipe
    reply_tokens: int
    samples: tuple[int, ...] = (0, 4, 22, 26)


REAL = DemoSettings(
    name="smollm2",
    model="SmolLM2-135M-Instruct",
    toy=False,
    operands=(10, 99),
    held_out=160,
    damage=Recipe(steps=120, batch=16, lr=1e-4, threads=2),
    reply_tokens=32,
)
QUICK = DemoSettings(
    name="quick",
    model="a two-layer toy",
    toy=True,
    operands=(0, 9),
    held_out=20,
    damage=Recipe(steps=400, batch=16, lr=1e-3),
    reply_tokens=24,
)
REPAIRS = (
    RepairChoice("DG-Hard", "dg-hard", ()),
    RepairChoice("WiSE-FT 0.5", "wise-ft", (("alpha", 0.5),)),
    RepairChoice("two-sided", AUTO, ()),
)
