"""DELLA: drop entries of the delta at random, the small entries of a row more often."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from deltamend.methods.elementwise import Weighted, magnitudes, tiles
from deltamend.methods.method import KeptDelta, TensorContext
from deltamend.methods.random_bits import RandomBits
from deltamend.spectrum.blocks import Block, Blocks, FloatArray


class Della(Weighted):
    """Keep entries at random, with probabilities that rise with their rank in their row (Deep et al. 2024, MAGPRUNE).

    In each row, the smallest |Δ| is kept with probability density − ε and the largest with density + ε; in between the
    probability rises linearly with the rank of the entry. Each entry that is kept is divided by its own probability, so that
    on average over random masks Δ* equals Δ. The paper's ε is the whole range, twice ours; mergekit's is ours, but mergekit
    rescales the whole tensor by one factor. The sign election of DELLA changes nothing when there is one fine-tuned model.
    With ε = 0 this is DARE.
    """

    name: ClassVar[str] = "della"
    aliases: ClassVar[tuple[str, ...]] = ("della-linear",)
    source: ClassVar[str] = "arXiv 2406.11617"
    summary: ClassVar[str] = "Drop entries at random, small ones more often, and rescale the rest."
    whole_rows: ClassVar[bool] = True

    density: float = Field(0.5, ge=0.0, le=1.0, description="Mean probability that an entry is kept.")
    epsilon: float = Field(0.1, ge=0.0, le=0.5, description="Largest distance of a probability from the mean.")
    rescale: bool = Field(True, description="Whether each entry that is kept is divided by its probability.")
    seed: int = Field(0, ge=0, description="Seed of the random mask.")

    @model_validator(mode="after")
    def _probabilities(self) -> Self:
        between = self.epsilon < self.density <= 1.0 - self.epsilon
        if not between and self.density not in (0.0, 1.0):
            raise ValueError(
                f"density {self.density:g} ± epsilon {self.epsilon:g} goes beyond the range from 0 to 1; lower epsilon"
            )
        return self

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Drop entries of one delta; see `Method.apply`."""
        if exact := self.all_or_nothing(self.density):
            return exact
        bits = RandomBits(self.seed, context.name, delta.shape)
        everything = self.density == 1.0

        def dropped(block: Block) -> FloatArray:
            for tile in tiles(block, delta.shape):
                chances = np.ones(tile.values.shape) if everything else self._probability(tile.values)
                factors = self.weight / chances if self.rescale else np.full(chances.shape, self.weight)
                factors[bits.at(tile) >= chances * 2.0**32] = 0.0
                tile.values[:] = tile.values * factors
            return block.values

        return KeptDelta("filtered", "", dropped)

    def _probability(self, values: FloatArray) -> npt.NDArray[np.float64]:
        """The probability with which each entry is kept, by its rank in its row; equal entries rank by their column."""
        order = np.argsort(magnitudes(values), axis=1, kind="stable")
        ranks = np.empty(order.shape)
        columns = values.shape[1]
        steps = np.linspace(-1.0, 1.0, columns) if columns > 1 else np.zeros(1)
        np.put_along_axis(ranks, order, np.broadcast_to(steps, order.shape), axis=1)
        return self.density + self.epsilon * ranks
