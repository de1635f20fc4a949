"""Hybrid: several methods one after another, each on what the one before it kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainSerializer, field_validator

from deltamend.errors import MethodError
from deltamend.methods.lookup import find_method, make_method, same_name
from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.methods.single_methods import methods_by_name
from deltamend.spectrum.blocks import Block, Blocks, FloatArray
from deltamend.spectrum.decompositions import Workspace

_DEFAULT_STEPS: tuple[dict[str, Any], ...] = ({"method": "dg-hard"}, {"method": "wise-ft"})


def _names_and_contents(step: dict[str, Any]) -> dict[str, Any]:
    return find_method(str(step.get("method")), methods_by_name()).portable(step)


# On the step and not on the field, of which pydantic would forget that it is at its default.
_Step = Annotated[dict[str, Any], PlainSerializer(_names_and_contents)]


class Hybrid(Method):
    """Apply several methods one after another, each to what the one before it kept: Δ* = step_k(… step_1(Δ)).

    For example a spectral filter and then interpolation or magnitude pruning. A method cannot be a step if it reads the
    whole model first (`scope=model`, `lines`, `energy-cut`) or needs whole rows at a time (such as `della` and `null-space`).
    """

    name: ClassVar[str] = "hybrid"
    source: ClassVar[str] = "ours"
    summary: ClassVar[str] = "A spectral filter followed by interpolation or trimming."

    steps: tuple[_Step, ...] = Field(
        _DEFAULT_STEPS,
        min_length=1,
        max_length=8,
        description="The methods in their order, each with its parameters, such as [{method: dg-hard}, {method: magnitude, density: 0.5}].",
    )

    def __hash__(self) -> int:
        # Not of what is written: that hashes files, and this is asked for with every tensor.
        return hash(json.dumps(self.steps, default=str))

    @field_validator("steps")
    @classmethod
    def _each_is_a_method(cls, steps: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for step in steps:
            _made(step)
        return steps

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """The methods of the steps, made."""
        return tuple(_made(step) for step in self.steps)

    @classmethod
    def portable_value(cls, key: str, value: Any) -> Any:
        """See `Method.portable_value`; the files of each step are those of its method."""
        tables = isinstance(value, list | tuple) and all(isinstance(one, dict) for one in value)
        if key == "steps" and tables and not all("value" in one for one in value):
            return [_names_and_contents(step) for step in value]
        return super().portable_value(key, value)

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Run the steps on one delta; see `Method.apply`."""
        kept = self.methods[0].apply(delta, context)
        for method in self.methods[1:]:
            if kept.outcome == "reverted":
                break
            kept = _chained(kept, method, delta, context)
        return kept


def _made(step: dict[str, Any]) -> Method:
    name = step.get("method")
    if not isinstance(name, str):
        raise ValueError(f"a step is written {{method: NAME, …}}, with the parameters after the name; got {step}")
    refusal = f"{name} cannot be a step: it looks at more than one block of one tensor at a time"
    if same_name(name, Hybrid.name):
        raise ValueError(refusal)
    try:
        parameters = {key: value for key, value in step.items() if key != "method"}
        method = make_method(find_method(name, methods_by_name()), name, parameters)
    except MethodError as error:
        raise ValueError(str(error)) from error
    if method.whole_rows or method.needs_survey or getattr(method, "scope", "tensor") == "model":
        raise ValueError(refusal)
    return method


@dataclass(frozen=True)
class _KeptBlocks:
    """What one step kept, as the delta that the next step is given."""

    kept: KeptDelta
    delta: Blocks

    @property
    def shape(self) -> tuple[int, int]:
        return self.delta.shape

    def __iter__(self) -> Iterator[Block]:
        for block in self.delta:
            copied = Block(block.start, block.stop, block.values.copy())
            yield Block(block.start, block.stop, self.kept.block(copied))


def _chained(first: KeptDelta, method: Method, delta: Blocks, context: TensorContext) -> KeptDelta:
    if first.outcome in ("identity", "no-noise-floor"):
        second = method.apply(delta, context)
        reason = "; ".join(text for text in (first.reason, second.reason) if text)
        return replace(second, reason=reason, spectrum=second.spectrum or first.spectrum)
    # The basis of the first step may lie in the workspace it was given.
    second = method.apply(_KeptBlocks(first, delta), replace(context, workspace=Workspace()))
    if second.outcome == "reverted":
        return second

    def both(block: Block) -> FloatArray:
        return second.block(Block(block.start, block.stop, first.block(block)))

    reason = "; ".join(text for text in (first.reason, second.reason) if text)
    return KeptDelta("filtered", reason, both, second.spectrum or first.spectrum)
