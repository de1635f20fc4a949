"""LiNeS: scale every delta by the depth of its layer."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from deltamend.checkpoint.architecture import kind_of, layer_of
from deltamend.errors import MethodError
from deltamend.methods.interpolation import scaled
from deltamend.methods.method import Counts, Deltas, KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Blocks

_MOST_LAYERS = 4096


class LiNeS(Method):
    """Δ* = λ(ℓ)·Δ, λ(ℓ) = α + (1 − α)·(ℓ − 1)/(L − 1) in layer ℓ of L (Wang et al. 2024, eq. 2 with β = 1 − α).

    Shallow layers, which hold what is general, go back towards the base, and the last layer keeps all of its update. A
    tensor before the first layer, such as the embedding, counts as the first layer; the head and what follows the last layer
    count as the last. A head that is tied to the embedding is the embedding. Layers are told by the first whole number in a
    tensor's name and counted over the matrices that this method is given; for a model of one layer λ is 1.
    """

    name: ClassVar[str] = "lines"
    source: ClassVar[str] = "arXiv 2410.17146"
    summary: ClassVar[str] = "Scale every delta by the depth of its layer: α in the first, 1 in the last."
    needs_survey: ClassVar[bool] = True
    keeps_rank: ClassVar[bool] = True

    alpha: float = Field(0.0, ge=0.0, le=1.0, description="Share of the delta that is kept in the first layer.")

    def survey(self, deltas: Deltas) -> int:
        """The number of layers.

        Raises:
            MethodError: a name holds a number of a layer that no model has.
        """

        def here(_delta: Blocks, context: TensorContext) -> Counts:
            found = np.zeros(_MOST_LAYERS, np.int64)
            layer = layer_of(context.name)
            if layer is not None:
                if layer >= _MOST_LAYERS:
                    raise MethodError(
                        f"{context.name}: {layer} is no number of a layer; give this tensor another method"
                    )
                found[layer] = 1
            return found

        layers = np.flatnonzero(deltas.total(here))
        return int(layers[-1]) + 1 if layers.size else 0

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:  # noqa: ARG002 - the same for every delta
        """Scale one delta; see `Method.apply`."""
        layers: int = context.surveyed
        layer = layer_of(context.name)
        if layer is None:
            layer = 0 if kind_of(context.name) == "embedding" else layers - 1
        depth = layer / (layers - 1) if layers > 1 else 1.0
        return scaled(self.alpha + (1.0 - self.alpha) * depth)
