"""What a training recipe is: settings that are checked when it is made, and what it does before, in and after each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch

OWN_TEXTS, OWN_TOKENS = 48, 96
"""How many texts a base writes where there are no old examples, and how many tokens each has."""


@dataclass(frozen=True)
class Units:
    """The units of one block of a layer: the hidden neurons of its feed-forward network, or its attention heads.

    Attributes:
        layer: number of the layer, from 0.
        kind: "mlp" for neurons, "attention" for heads.
        reader: name of the linear layer whose input features are what the units put out.
        count: number of units; each has (input features of `reader`) / `count` features.
        weights: (name of a parameter, axis) for each parameter that belongs to the units: its indices along the axis are their
            features, in their order. Key and value heads that several query heads share have fewer.
    """

    layer: int
    kind: Literal["mlp", "attention"]
    reader: str
    count: int
    weights: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class TrainingRun:
    """One training, as a recipe sees it; it works for any torch model and any kind of example.

    Attributes:
        model: at the start its weights are those of the base.
        steps: optimiser steps of the training.
        batch: new examples in each step.
        lr: peak learning rate.
        seed: of what a recipe draws.
        loss: gives the mean loss of a model over some examples, a scalar with a gradient.
        outputs: gives the logits of a model for every prediction in some examples, (predictions, classes) float32.
        old: the old examples, one group for each old task.
        head: names of the parameters of the output layer.
        units: of every layer, as far as they are known.
        predictions: gives the number of predictions in some examples, over which `loss` is the mean.
        at_once: examples that fit into memory at a time; None for any number.
    """

    model: torch.nn.Module
    steps: int
    batch: int
    lr: float
    seed: int
    loss: Callable[[Any, Sequence[Any]], torch.Tensor]
    outputs: Callable[[Any, Sequence[Any]], torch.Tensor]
    old: tuple[tuple[Any, ...], ...] = ()
    head: tuple[str, ...] = ()
    units: tuple[Units, ...] = ()
    predictions: Callable[[Sequence[Any]], int] = len
    at_once: int | None = None

    @property
    def all_old(self) -> tuple[Any, ...]:
        """The old examples of all groups."""
        return tuple(example for group in self.old for example in group)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: one for name, one in self.model.named_parameters() if one.requires_grad}


class RunningRecipe:
    """What a recipe does during a training. This one does nothing: plain training.

    What it does in a step depends on the base, on the settings and on the number of the step alone, so that a training that
    was interrupted is continued by making it anew from the base.
    """

    def before_step(self, step: int) -> None:
        """Called before the gradient of step `step`, from 0, is computed."""

    def after_backward(self, step: int) -> None:
        """Called when every parameter has its gradient of the loss over the new examples, before it is clipped; may change it."""

    def after_step(self, step: int) -> None:
        """Called when the weights have changed."""

    def held(self) -> Sequence[torch.Tensor]:
        """The tensors that it keeps in memory while training, besides what plain training does."""
        return ()


@dataclass(frozen=True)
class AdapterSettings:
    """A LoRA adapter.

    Attributes:
        rank: r of the paper.
        alpha: α of the paper; the update is scaled by α/r.
        layers: "all-linear" for every linear layer but the head; "query-value" for the projections of queries and values.
    """

    rank: int
    alpha: float
    layers: Literal["query-value", "all-linear"]


class Recipe(BaseModel, ABC):
    """A training recipe; its fields are its settings, with range, unit and help on each.

    Instances are frozen and hold settings only. The docstring of the class is its page in the documentation: the paper, the
    equation, and where a setting comes from that the paper does not give for language models.

    Attributes:
        name: what it is called on the command line.
        source: the paper.
        summary: one sentence.
        needs: what it needs besides the new examples, as text.
        uses_old: whether it wants old examples; where the user has none, texts that the base writes itself stand in.
        full_only: whether it trains the weights themselves and no adapter.
        off: settings with which it is plain training, bit for bit; None of plain training itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[str]
    uses_old: ClassVar[bool] = False
    full_only: ClassVar[bool] = False
    off: ClassVar[dict[str, Any] | None] = None

    @property
    def is_off(self) -> bool:
        """Whether these settings make it plain training."""
        return self.off is not None and all(getattr(self, name) == value for name, value in self.off.items())

    @property
    def adapter(self) -> AdapterSettings | None:
        """The adapter that it trains; None where it does not ask for one."""
        return None

    def start(self, run: TrainingRun) -> RunningRecipe:
        """Get ready for a training whose weights are still those of the base, which is left as it is.

        Raises:
            UsageError: the model lacks what the recipe needs, such as units that it knows.
        """
        return RunningRecipe() if self.is_off else self.begin(run)

    @abstractmethod
    def begin(self, run: TrainingRun) -> RunningRecipe:
        """`start` of a recipe that is not off."""

    def described(self) -> str:
        """Name and the settings that are not at their defaults, such as "ewc strength=100.0"."""
        given: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        return " ".join([self.name, *(f"{key}={value}" for key, value in given.items())])
