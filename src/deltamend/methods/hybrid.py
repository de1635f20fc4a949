"""One method after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field, field_validator

from deltamend.errors import MethodError
from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray
from deltamend.spectrum.eigen import Workspace

_DEFAULT_STEPS: tuple[dict[str, Any], ...] = ({"method": "dg-hard"}, {"method": "wise-ft"})


class Hybrid(Method):
    """Each step is given what the step before it kept: Δ* = step_k(… step_1(Δ)).

    A spectral filter followed by interpolation or trimming is one line of a config. Steps that look at the whole model
    first (scope=model) or need whole rows (della) are refused.
    """

    name: ClassVar[str] = "hybrid"
    source: ClassVar[str] = "ours"
    summary: ClassVar[str] = "A spectral filter followed by interpolation or trimming."

    steps: tuple[dict[str, Any], ...] = Field(
        _DEFAULT_STEPS,
        min_length=1,
        max_length=8,
        description="Methods with their parameters, such as [{method: dg-hard}, {method: magnitude, density: 0.5}].",
    )

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @field_validator("steps")
    @classmethod
    def _each_is_a_method(cls, steps: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for step in steps:
            _made(step)
        return steps

    @cached_property
    def _methods(self) -> tuple[Method, ...]:
        return tuple(_made(step) for step in self.steps)

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Run the steps on one delta; see `Method.apply`."""
        kept = self._methods[0].apply(delta, context)
        for method in self._methods[1:]:
            if kept.outcome == "reverted":
                break
            kept = _chained(kept, method, delta, context)
        return kept


def _made(step: dict[str, Any]) -> Method:
    # Late, because the registry lists this class.
    from deltamend.methods.registry import get_method

    name = step.get("method")
    if not isinstance(name, str):
        raise ValueError(f"a step is {{method: NAME, …}}; got {step}")
    try:
        method = get_method(name, {key: value for key, value in step.items() if key != "method"})
    except MethodError as error:
        raise ValueError(str(error)) from error
    if method.whole_rows or getattr(method, "scope", "tensor") == "model" or isinstance(method, Hybrid):
        raise ValueError(f"{name} cannot be a step: it looks at more than one block of one tensor at a time")
    return method


@dataclass(frozen=True)
class _KeptBlocks:
    """What a step kept, as the delta of the next."""

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
