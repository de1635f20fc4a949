"""Null-space: remove from the update what acts on inputs that are common in the base model's own texts."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from deltamend.methods.activations_method import ActivationsMethod
from deltamend.methods.input_moments import Inputs, effect_by_direction, squares
from deltamend.methods.method import KeptDelta, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray

_DECADES = 12.0
"""λ is searched within this many powers of ten above and below the mean eigenvalue."""


class NullSpace(ActivationsMethod):
    """Δ* = Δ·(I + C/λ)⁻¹, which minimises E‖Δ*x‖² + λ‖Δ* − Δ‖², where x is an input of the layer in the base model.

    C = E[xxᵀ] is the second moment of the layer's inputs, each scaled to length 1, over texts that the base model writes
    itself; so no data are needed. `deltamend calibrate activations` computes it and writes the file. What the update does
    to inputs that are common in these texts is removed, and what it does to other inputs is kept. This is a soft form of
    the projection onto the null space of C (Wang et al. 2021, arXiv 2103.07113; Fang et al. 2024, arXiv 2410.02355). That
    it is made after training and not during it is ours.

    λ is chosen for each matrix: the largest for which the relative change of the layer's outputs, √(E‖Δ*x‖²/E‖W_base x‖²),
    is at most `effect`, and at most `share` times what it is for Δ. Where `share` is 1, an update whose relative change is
    no larger than `effect` is therefore kept whole. With `ridge`, λ = ridge·tr(C)/n instead.

    A matrix whose inputs the file does not hold is kept as fine-tuned, such as an embedding that is not tied to the head, or
    the experts of a mixture.
    """

    name: ClassVar[str] = "null-space"
    source: ClassVar[str] = "ours, after arXiv 2103.07113"
    summary: ClassVar[str] = (
        "Remove what the update does to inputs that are common in the base model's own texts; keep the rest."
    )
    weighs_rows: ClassVar[bool] = True
    keeps_rank: ClassVar[bool] = True

    effect: float = Field(
        0.001,
        ge=0.0,
        le=10.0,
        description="Largest change of a layer's outputs on the base model's own texts, relative to these outputs (root mean square).",
    )
    share: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="Largest change of a layer's outputs on the base model's own texts, relative to the change that the whole update makes.",
    )
    ridge: float | None = Field(
        None,
        ge=0.0,
        description="λ in units of the mean eigenvalue of C, the same for every matrix; replaces `effect` and `share`.",
    )

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Remove from one delta what acts on common inputs; see `Method.apply`."""
        if self.ridge == 0.0 or (self.ridge is None and 0.0 in (self.effect, self.share)):
            return KeptDelta.reverted("nothing is kept by the parameters")
        inputs = self.inputs(delta, context)
        if isinstance(inputs, KeptDelta):
            return inputs
        mean = float(inputs.values.sum()) / delta.shape[1]
        if self.ridge is not None:
            strength, reason = self.ridge * mean, ""
        else:
            before, after, strength = self._strength(delta, context, inputs, mean)
            if strength == np.inf:
                return KeptDelta.identity(f"its effect on the base's own texts is {before:.2g}")
            reason = f"effect on the base's own texts {before:.2g} before, {after:.2g} after"
        taken = inputs.values / (inputs.values + strength)

        def bent(block: Block) -> FloatArray:
            vectors = inputs.vectors.astype(block.values.dtype, copy=False)
            coordinates = block.values @ vectors.T
            coordinates *= taken.astype(coordinates.dtype)
            block.values[:] -= coordinates @ vectors
            return block.values

        def metric() -> FloatArray:
            roots = inputs.vectors.astype(np.float64) * np.sqrt(inputs.values / strength)[:, None]
            weighed: FloatArray = roots.T @ roots
            weighed[np.diag_indices(len(weighed))] += 1.0
            return weighed

        return KeptDelta("filtered", reason, bent, metric=metric)

    def _strength(
        self, delta: Blocks, context: TensorContext, inputs: Inputs, mean: float
    ) -> tuple[float, float, float]:
        """The effect of Δ, the effect of Δ*, and the λ that gives it; λ is infinite where Δ is kept whole."""
        effects = effect_by_direction(delta, context, inputs)
        if effects is None:  # what the base leaves at 0 may not become another value
            acts = any(float(squares(block.values, inputs.vectors) @ inputs.values) for block in delta)
            return (np.inf if acts else 0.0), 0.0, mean * 10.0**-_DECADES

        def effect(decade: float) -> float:
            strength = mean * 10.0**decade
            return float(np.sqrt(effects @ (strength / (inputs.values + strength)) ** 2))

        before = float(np.sqrt(effects.sum()))
        allowed = min(self.effect, self.share * before)
        if before <= allowed:
            return before, before, np.inf
        low, high = -_DECADES, _DECADES
        if effect(low) >= allowed:
            decade = low
        elif effect(high) <= allowed:
            decade = high
        else:
            from scipy.optimize import brentq  # late: a sixth of all start-up time, and most repairs do without it

            decade = float(brentq(lambda at: effect(at) - allowed, low, high, xtol=1e-10))
        return before, effect(decade), mean * 10.0**decade
