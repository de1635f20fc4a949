"""Two-sided: weigh what an update does for its own task against what it does to the base model's own inputs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, FilePath, field_serializer, model_validator

from deltamend.errors import FilterError
from deltamend.methods.activations_method import ActivationsMethod
from deltamend.methods.file_parameters import name_and_content
from deltamend.methods.input_moments import Array, Inputs, inputs_of, refuse_other_model
from deltamend.methods.method import Deltas, KeptDelta, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray

_ROUNDING = 1e-10
"""Of the mean of its diagonal, added to the matrix that is inverted, so that rounding leaves it positive definite."""
_ENTRIES_AT_ONCE = 1 << 20
"""Of a delta, in float64, while ΔᵀΔ is summed: 8 MiB."""


class TwoSided(ActivationsMethod):
    """Δ* = Δ·A(A + μB)⁻¹, which minimises ‖(Δ* − Δ)A^½‖² + μ‖Δ*B^½‖².

    B is the second moment of the layer's inputs over the base model's own texts, so the second term is what Δ* changes there.
    A says along which inputs the update is to be kept. It is a weighted sum of ΔᵀΔ (`update`), of the identity (`identity`),
    and of the second moment of the layer's inputs over texts of the new task (`target`). Each of them, and B, is divided by
    its mean eigenvalue, so that one strength μ serves every matrix.

    Δ* may be larger than Δ: inputs that the base uses are taken out of it, and what the task loses by that is made up for along
    inputs that the base does not use.

    Its limits are other methods: A = I is `null-space` with ridge 1/μ; A = B is `wise-ft` with alpha 1/(1 + μ); with A = ΔᵀΔ
    and B = I the singular value σ is multiplied by σ²/(σ² + μ·mean σ²), a soft form of the threshold of `dg-hard`. With ΔᵀΔ
    and the base's own B, a direction is kept where the update is large compared with how much the base uses that input.
    Where `target` is 0, Δ* is what `null-space` keeps, multiplied from the left by a matrix that restores those outputs in which the
    update is large.

    The closed form is that of RegMean (arXiv 2212.09849), which averages models by the moments of their inputs; Model Tailor
    (arXiv 2402.12048) weighs target data against it; ACE (arXiv 2603.02945) and WUDI (arXiv 2503.08099) take ΔᵀΔ for the
    moments of inputs that are not known. That the three are weighed for one update, with no data, is ours.

    A matrix whose inputs the file does not hold is kept as fine-tuned, such as an embedding that is not tied to the head, or
    the experts of a mixture.
    """

    name: ClassVar[str] = "two-sided"
    source: ClassVar[str] = "ours, after arXiv 2212.09849 and 2402.12048"
    summary: ClassVar[str] = "Keep what is large in the update compared with how much the base uses the same inputs."
    weighs_rows: ClassVar[bool] = True
    keeps_rank: ClassVar[bool] = True

    strength: float = Field(
        1.0,
        ge=0.0,
        le=1e9,
        description="μ, how much a change on the base model's own texts counts against a loss of the update.",
    )
    update: float = Field(0.7, ge=0.0, le=1.0, description="Weight of ΔᵀΔ in A.")
    identity: float = Field(0.3, ge=0.0, le=1.0, description="Weight of the identity in A.")
    target: float = Field(
        0.0, ge=0.0, le=1.0, description="Weight in A of the inputs of the new task; it needs `target_activations`."
    )
    target_activations: FilePath | None = Field(
        None,
        description="Safetensors file that `deltamend calibrate activations` made from the fine-tuned model, with its own texts or "
        "with a few of the new task's.",
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.update == self.identity == self.target == 0.0:
            raise ValueError("update, identity and target are all 0; give at least one of them a weight")
        if (self.target > 0.0) != (self.target_activations is not None):
            raise ValueError("target and target_activations go together; give both or neither")
        return self

    @field_serializer("target_activations")
    def _target_name_and_content(self, path: Path | None) -> str | None:
        return None if path is None else name_and_content(path, self.name)

    def survey(self, deltas: Deltas) -> None:
        """Refuse files that were computed from another model; see `ActivationsMethod.survey`."""
        super().survey(deltas)
        if self.target_activations is not None:
            refuse_other_model(self.target_activations, deltas)

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Weigh one delta; see `Method.apply`."""
        if self.strength == 0.0:
            return KeptDelta.identity("a strength of 0 keeps everything")
        base = self.inputs(delta, context)
        if isinstance(base, KeptDelta):
            return base
        if delta.shape[0] < delta.shape[1] and self.identity > 0.0 and self.target_activations is None:
            return self._from_the_left(delta, context, base)
        return self._from_the_right(delta, context, base)

    def _from_the_right(self, delta: Blocks, context: TensorContext, base: Inputs) -> KeptDelta:
        """Δ* = Δ·(A(A + μB)⁻¹), by matrices of the size of a row."""
        from scipy.linalg import LinAlgError, cho_factor, cho_solve  # late, as in spectrum.fortran_calls

        squared = gram(delta)
        if not np.trace(squared):
            return KeptDelta.identity("base and fine-tuned are equal")
        kept = self._metric_to_keep(squared, context)
        whole = self._metric(kept, base)
        try:
            factor = cho_factor(whole, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError as error:
            raise FilterError(
                f"tensor {context.name!r}: A + μB cannot be inverted; give `identity` a weight"
            ) from error
        filtered = cho_solve(factor, kept, overwrite_b=True, check_finite=False).T

        def weighed(block: Block) -> FloatArray:
            block.values[:] = block.values @ filtered.astype(block.values.dtype, copy=False)
            return block.values

        def metric() -> FloatArray:
            lower = np.tril(factor[0])
            found: FloatArray = lower @ lower.T
            return found

        return KeptDelta("filtered", "", weighed, metric=metric)

    def _from_the_left(self, delta: Blocks, context: TensorContext, base: Inputs) -> KeptDelta:
        """The same Δ* of a wide matrix with A = u·ΔᵀΔ + c·I, by matrices of the size of a column.

        By Woodbury's identity Δ* = (κI + ΔΔᵀ)(κI + NΔᵀ)⁻¹N with κ = c/u, where N = Δ(I + μB/c)⁻¹ is what `null-space` keeps: it is
        multiplied from the left so that outputs in which little was kept come back to their size in Δ.
        """
        from scipy.linalg import cho_factor, cho_solve  # late, as in spectrum.fortran_calls

        rows, width = delta.shape
        blocks = [block.values.astype(np.float64) for block in delta]
        update = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        with np.errstate(invalid="ignore", over="ignore"):
            whole = update @ update.T
        if not np.isfinite(whole).all():
            raise FilterError(f"tensor {context.name!r}: the delta holds NaN or infinity")
        if not np.trace(whole):
            return KeptDelta.identity("base and fine-tuned are equal")
        vectors = base.vectors.astype(np.float64)
        values = base.values * (width / base.values.sum())
        coordinates = update @ vectors.T
        taken = coordinates * (self.strength * values / (self.identity + self.strength * values))
        kept = update - taken @ vectors
        if self.update > 0.0:
            floor = self.identity * np.trace(whole) / (self.update * width) * np.eye(rows)
            factor = cho_factor(floor + whole - taken @ coordinates.T, lower=True, overwrite_a=True, check_finite=False)
            kept = cho_solve(factor, floor + whole, overwrite_b=True, check_finite=False).T @ kept

        def weighed(block: Block) -> FloatArray:
            block.values[:] = kept[block.start : block.start + len(block.values)]
            return block.values

        return KeptDelta(
            "filtered", "", weighed, metric=lambda: self._metric(self._metric_to_keep(gram(delta), context), base)
        )

    def _metric(self, kept: Array, base: Inputs) -> Array:
        """A + μB, shape (n, n) float64, positive definite, from A."""
        whole = kept + self.strength * moment(base)
        width = len(whole)
        whole[np.diag_indices(width)] += _ROUNDING * np.trace(whole) / width
        return whole

    def _metric_to_keep(self, squared: Array, context: TensorContext) -> Array:
        """A, shape (n, n) float64, in the place of ΔᵀΔ.

        Raises:
            FilterError: Δ holds NaN or infinity.
        """
        width = len(squared)
        if not np.isfinite(squared).all():
            raise FilterError(f"tensor {context.name!r}: the delta holds NaN or infinity")
        squared *= self.update * width / np.trace(squared)
        squared[np.diag_indices(width)] += self.identity
        if self.target_activations is not None:
            target = inputs_of(self.target_activations, context, width)
            if target is None or not target.values.any():
                squared[np.diag_indices(width)] += self.target
            else:
                squared += self.target * moment(target)
        return squared


def gram(delta: Blocks) -> Array:
    """ΔᵀΔ, shape (n, n) float64, from blocks of whole rows."""
    total = np.zeros((delta.shape[1], delta.shape[1]))
    rows = max(1, _ENTRIES_AT_ONCE // delta.shape[1])
    for block in delta:
        for start in range(0, len(block.values), rows):
            part = block.values[start : start + rows].astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):  # the caller looks for what is not finite
                total += part.T @ part
    return total


def moment(inputs: Inputs) -> Array:
    """The second moment of inputs divided by its mean eigenvalue, shape (n, n) float64."""
    scale = inputs.vectors.shape[1] / inputs.values.sum()
    roots = inputs.vectors.astype(np.float64) * np.sqrt(inputs.values * scale)[:, None]
    found: Array = roots.T @ roots
    return found
