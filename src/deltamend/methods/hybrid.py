"""One method after another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from pydantic import Field, PlainSerializer, field_validator
from pydantic.fields import FieldInfo

from deltamend.errors import MethodError
from deltamend.methods.entry_file import name_and_content
from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray
from deltamend.spectrum.eigen import Workspace

_DEFAULT_STEPS: tuple[dict[str, Any], ...] = ({"method": "dg-hard"}, {"method": "wise-ft"})


def _names_and_contents(step: dict[str, Any]) -> dict[str, Any]:
    return portable(step["method"], step)


# On the step and not on the field, of which pydantic would forget that it is at its default.
_Step = Annotated[dict[str, Any], PlainSerializer(_names_and_contents)]


class Hybrid(Method):
    """Each step is given what the step before it kept: Δ* = step_k(… step_1(Δ)).

    A spectral filter followed by interpolation or trimming is one line of a config. Steps that look at the whole model
    first (scope=model) or need whole rows (della) are refused.
    """

    name: ClassVar[str] = "hybrid"
    source: ClassVar[str] = "ours"
    summary: ClassVar[str] = "A spectral filter followed by interpolation or trimming."

    steps: tuple[_Step, ...] = Field(
        _DEFAULT_STEPS,
        min_length=1,
        max_length=8,
        description="Methods with their parameters, such as [{method: dg-hard}, {method: magnitude, density: 0.5}].",
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

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Run the steps on one delta; see `Method.apply`."""
        kept = self.methods[0].apply(delta, context)
        for method in self.methods[1:]:
            if kept.outcome == "reverted":
                break
            kept = _chained(kept, method, delta, context)
        return kept


def portable(method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as they were given, but files by name and content, as the method itself writes them.

    Args:
        method: name of the method they belong to.
        parameters: its own and others; also lists of {filter, value}, as `MethodChoice` takes them.

    Raises:
        MethodError: there is no such method, or no such file.
    """
    from deltamend.methods.registry import method_class  # late, as below

    kind = method_class(method)
    return {key: _portable_value(kind, key, value) for key, value in parameters.items()}


def _portable_value(kind: type[Method], key: str, value: Any) -> Any:
    if isinstance(value, list | tuple) and value and all(isinstance(one, dict) for one in value):
        if all("value" in one for one in value):
            return [{**one, "value": _portable_value(kind, key, one["value"])} for one in value]
        if kind is Hybrid and key == "steps":
            return [portable(str(step.get("method")), step) for step in value]
    field = kind.model_fields.get(key)
    is_file = field is not None and _is_path(field) and isinstance(value, str | Path)
    return name_and_content(Path(value), kind.name) if is_file else value


def _is_path(field: FieldInfo) -> bool:
    """Whether it is a path, or a path or something else."""
    kinds = (field.annotation, *get_args(field.annotation))
    return any(getattr(kind, "__origin__", kind) is Path for kind in kinds)  # of what is annotated, too


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
