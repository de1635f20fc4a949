"""Equal effect: scale every delta by one number, so that a layer's outputs on the base's own texts change by no more than so much."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from deltamend.methods.activations_method import ActivationsMethod
from deltamend.methods.input_moments import effect_by_direction
from deltamend.methods.interpolation import scaled
from deltamend.methods.method import KeptDelta, TensorContext
from deltamend.spectrum.blocks import Blocks


class EqualEffect(ActivationsMethod):
    """Δ* = s·Δ, s = min(1, effect/√(E‖Δx‖²/E‖W_base x‖²)), where x is an input of the layer in the base model.

    The control of null-space: it changes a layer's outputs on the base's own texts exactly as much, from the same file of
    activations, but keeps every direction of the update alike. What null-space does better than this, it owes to the
    directions; what this does better than WiSE-FT, which has one s for all matrices, is owed to weighing the matrices.

    A matrix whose inputs the file does not hold is kept as fine-tuned, as null-space keeps it.
    """

    name: ClassVar[str] = "equal-effect"
    source: ClassVar[str] = "ours"
    summary: ClassVar[str] = "Scale every delta by one number, to the effect on the base's own texts that is allowed."
    keeps_rank: ClassVar[bool] = True

    effect: float = Field(
        0.001,
        ge=0.0,
        le=10.0,
        description="Largest change of a layer's outputs on the base model's own texts, relative to these outputs (root mean square).",
    )

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Scale one delta; see `Method.apply`."""
        if self.effect == 0.0:
            return KeptDelta.reverted("nothing is kept by the parameters")
        inputs = self.inputs(delta, context)
        if isinstance(inputs, KeptDelta):
            return inputs
        effects = effect_by_direction(delta, context, inputs)
        if effects is None:
            return KeptDelta.reverted("the base's outputs are 0 on its own texts, and any change is too much")
        before = float(np.sqrt(effects.sum()))
        if before <= self.effect:
            return KeptDelta.identity(f"its effect on the base's own texts is {before:.2g}")
        return scaled(self.effect / before)
