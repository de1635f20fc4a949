"""How a model is fine-tuned, whatever the recipe: dtypes, learning rate, steps, and the recipe itself."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from deltamend.errors import UsageError, option
from deltamend.recipes.recipe import Recipe
from deltamend.recipes.registry import get_recipe
from deltamend.records import FiniteRecord


class Regime(FiniteRecord):
    """How a model is fine-tuned."""

    name: str = Field(description="Its name in the results.")
    weights: Literal["float32", "bfloat16"] = Field(
        "float32", description="Dtype in which weights, gradients and both moments of AdamW are held."
    )
    compute: Literal["float32", "bfloat16"] = Field(
        "bfloat16",
        description="Dtype of the arithmetic of the forward and backward pass; a processor without bf16 instructions is some twenty times faster in float32.",
    )
    stored: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="Dtype in which the fine-tuned model is written; default: that of `weights`. Regimes that differ in nothing else share one training.",
    )
    lr: float = Field(gt=0, description="Peak learning rate; linear warm-up, linear decay to zero.")
    steps: int = Field(ge=1, description="Optimiser steps.")
    batch: int = Field(16, ge=1, description="Examples in each optimiser step.")
    micro_batch: int | None = Field(
        None, ge=1, description="Examples at a time on one device; by default all of a step's."
    )
    warmup: int = Field(10, ge=0, description="Optimiser steps of warm-up.")
    max_length: int = Field(512, ge=8, description="Longest example, in tokens; longer ones are cut.")
    lora_rank: int | None = Field(None, ge=1, description="Train a LoRA adapter of this rank on all linear layers.")

    recipe: str = Field("plain", description="Name of a training recipe, as `deltamend recipes` lists them.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Settings of the recipe.")

    @model_validator(mode="after")
    def _is_a_recipe(self) -> Self:
        try:
            check_recipe(self.made_recipe(), lora_rank=self.lora_rank)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self

    def made_recipe(self) -> Recipe:
        """The recipe with its settings."""
        return get_recipe(self.recipe, self.settings)

    @property
    def trains_adapter(self) -> bool:
        """Whether an adapter is trained and not the weights."""
        return self.lora_rank is not None or self.made_recipe().adapter is not None

    @property
    def written(self) -> str:
        """Dtype in which the fine-tuned model is written."""
        return self.stored or self.weights

    def what_trains(self) -> dict[str, object]:
        """All of it that decides what training gives; as it was written before `compute` and `recipe` were there, where it is as then."""
        fields = self.model_dump(exclude={"name", "stored", "recipe", "settings"})
        if self.compute == "bfloat16":
            del fields["compute"]
        recipe = self.made_recipe()
        if recipe.name != "plain":
            fields["recipe"] = [recipe.name, recipe.model_dump(mode="json")]
        return fields


def check_recipe(recipe: Recipe, *, lora_rank: int | None) -> None:
    """Refuse a recipe that cannot train what is to be trained.

    Raises:
        UsageError: it trains no adapter, or one of its own, and `lora_rank` asks for one.
    """
    if lora_rank is not None and recipe.full_only:
        raise UsageError(
            f"recipe {recipe.name}: trains the weights themselves and no adapter; leave out {option('lora_rank')}"
        )
    if lora_rank is not None and recipe.adapter is not None:
        raise UsageError(
            f"recipe {recipe.name}: has a rank of its own; leave out {option('lora_rank')}, and set `rank`"
        )
