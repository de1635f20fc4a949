"""What a method is: parameters that are checked when it is made, and one `apply`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from deltamend.methods.file_parameters import name_and_content, takes_a_file
from deltamend.spectrum.blocks import Block, Blocks, FloatArray
from deltamend.spectrum.decompositions import Workspace
from deltamend.spectrum.kept_subspace import SpectralFilter

Counts = npt.NDArray[np.int64]


class Weights(Protocol):
    """The base weights, cut into the same blocks as the delta."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n), that of the delta."""

    def read(self, start: int, stop: int) -> FloatArray:
        """The part that belongs to `Block(start, stop, …)`, in the dtype of the delta.

        A buffer of the caller's to do with as it likes, until the next call.
        """


@dataclass(frozen=True)
class Place:
    """Where a delta lies in a tensor: its name, spans of rows one after another, and columns where not all of them."""

    tensor: str
    rows: tuple[tuple[int, int], ...]
    columns: tuple[int, int] | None


@dataclass(frozen=True)
class TensorContext:
    """What a method may know besides the delta.

    Attributes:
        name: of the tensor; what is random is seeded by it, so that neither order nor workers matter.
        base: the base weights.
        stored_dtype: the dtype FINETUNED is stored in, by its torch name such as "bfloat16".
        device: where to compute what is expensive, "cpu" or a torch device.
        surveyed: what `Method.survey` found.
        place: where in its tensor the delta lies, where that is not simply its first rows.
        update_rank: the rank of the delta, where it is an adapter's and known by construction.
        inputs_of: the weight of BASE, by its name there, that is given what the columns of the delta are; None where that is
            the tensor's own name, and "" where there is none, as for an embedding that is not tied to the head.
        workspace: scratch memory of this thread for spectral filters.
        quantisation: gives the mean variance that the quantisation of either side adds to an entry of the delta; None where
            neither is quantised.
    """

    name: str
    base: Weights
    stored_dtype: str = "float32"
    device: str = "cpu"
    surveyed: Any = None
    place: Place | None = None
    update_rank: int | None = None
    inputs_of: str | None = None
    workspace: Workspace = field(default_factory=Workspace)
    quantisation: Callable[[], float] | None = None


@dataclass(frozen=True)
class KeptDelta:
    """What a method makes of one delta.

    `identity`: Δ* = Δ, so the fine-tuned bytes are written; `reverted`: Δ* = 0, so the base values are written;
    `filtered`: `block` maps each block of Δ to the values of the same block of Δ*. `no-noise-floor` writes the
    fine-tuned bytes because the method could not be applied, and `reason` says why. `spectrum` is what a spectral
    method found. `metric` gives the matrix M, (n, n) float64, of the quadratic form Σ rᵀMr over the rows r that Δ*
    minimises something of, by which an error of rounding counts; only methods that `weighs_rows` have one. `block` may overwrite the values it is given and return them; it gives the same for a block of any
    size and blocks in any order.
    """

    outcome: Literal["identity", "reverted", "filtered", "no-noise-floor"]
    reason: str
    block: Callable[[Block], FloatArray]
    spectrum: SpectralFilter | None = None
    metric: Callable[[], FloatArray] | None = None

    @classmethod
    def identity(cls, reason: str) -> KeptDelta:
        """Δ* = Δ."""
        return cls("identity", reason, lambda block: block.values)

    @classmethod
    def reverted(cls, reason: str) -> KeptDelta:
        """Δ* = 0."""
        return cls("reverted", reason, lambda block: np.zeros_like(block.values))


class Deltas(Protocol):
    """All deltas one method is going to be given, for methods that look at the whole model first."""

    def total(self, count: Callable[[Blocks, TensorContext], Counts]) -> Counts:
        """Sum of `count` over all deltas, in parallel; whole numbers, so that the order does not matter.

        Args:
            count: called once for each delta, from any thread; always of the same shape.
        """


class Method(BaseModel, ABC):
    """A repair method; its fields are its parameters, with range, unit and help on each.

    With its defaults a method repairs: no update but a special one comes out as it went in, `none` excepted. A parameter whose
    usual value would keep everything has no default and has to be given, with an example in its field.

    Instances are frozen and hold parameters only, so they can be shared between threads. The docstring of the class is
    its page in the documentation: the paper, the equation, and what it coincides with when there is one fine-tuned model.

    Attributes:
        name: what it is called on the command line.
        aliases: other names, such as those mergekit uses; "_" and "-" are the same in all of them.
        source: the paper.
        summary: one sentence.
        whole_rows: whether it needs whole rows in every block, also of a wide matrix.
        needs_survey: whether `apply` cannot do without what `survey` found.
        takes_vectors: whether it means anything for one-dimensional parameters.
        weighs_rows: whether what it filters has a `KeptDelta.metric`, by which rounding can be compensated.
        keeps_rank: whether the rank of Δ* is never above that of Δ, so that the update of an adapter becomes one again.
        low_rank: whether Δ* is always Δ, 0, or what the factors of `KeptDelta.spectrum` give, so that an adapter holds it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str]
    summary: ClassVar[str]
    whole_rows: ClassVar[bool] = False
    needs_survey: ClassVar[bool] = False
    takes_vectors: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = False
    keeps_rank: ClassVar[bool] = False
    low_rank: ClassVar[bool] = False

    def survey(self, deltas: Deltas) -> Any:  # noqa: ARG002 - most methods take each tensor by itself
        """Look at the whole model before the first tensor; `apply` finds what this returns in `context.surveyed`."""
        return None

    @abstractmethod
    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Decide what is kept of one delta.

        Args:
            delta: Δ = W_ft − W_base, shape (m, n), float32 or float64, read block by block. It may be zero everywhere
                where the dtypes of the two sides differ.
            context: the tensor it belongs to.

        Raises:
            FilterError: Δ holds NaN or Inf, or no algorithm gave a checked answer.
        """

    def described(self) -> str:
        """Name and the parameters that are not at their defaults, such as "wise-ft alpha=0.3"."""
        given: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        return " ".join([self.name, *(f"{key}={value}" for key, value in given.items())])

    @classmethod
    def portable(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters as they were given, but files by name and content, as the method itself writes them.

        Args:
            parameters: those of the method and others, which are left alone; a value may also be a list of
                {filter, value}, as `MethodChoice` takes them.

        Raises:
            MethodError: there is no such file.
        """
        return {key: cls.portable_value(key, value) for key, value in parameters.items()}

    @classmethod
    def portable_value(cls, key: str, value: Any) -> Any:
        """One parameter of `portable`."""
        if isinstance(value, list | tuple) and value and all(isinstance(one, dict) and "value" in one for one in value):
            return [{**one, "value": cls.portable_value(key, one["value"])} for one in value]
        field = cls.model_fields.get(key)
        is_file = field is not None and takes_a_file(field) and isinstance(value, str | Path)
        return name_and_content(Path(value), cls.name) if is_file else value


def spectral_result(found: SpectralFilter) -> KeptDelta:
    """What a spectral filter means for the output."""
    match found.outcome:
        case "zero" | "all-kept":
            return KeptDelta("identity", found.reason, lambda block: block.values, found)
        case "none-kept":
            return KeptDelta("reverted", found.reason, lambda block: found.apply(block.values), found)
        case "no-noise-floor":
            return KeptDelta("no-noise-floor", found.reason, lambda block: block.values, found)
        case "filtered":
            return KeptDelta("filtered", found.reason, lambda block: found.apply(block.values, out=block.values), found)
