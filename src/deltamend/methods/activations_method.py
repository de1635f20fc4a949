"""The base of all methods that know the inputs of each layer, from a file of `deltamend calibrate activations`."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import ClassVar

from pydantic import Field, FilePath, field_serializer

from deltamend.methods.file_parameters import name_and_content
from deltamend.methods.input_moments import Inputs, inputs_of, refuse_other_model
from deltamend.methods.method import Deltas, KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Blocks


class ActivationsMethod(Method, ABC):
    """A method that weighs an update by the inputs of its layer in the base model.

    A matrix whose inputs the file does not hold, or whose inputs were always 0, is kept as fine-tuned.
    """

    whole_rows: ClassVar[bool] = True

    activations: FilePath = Field(
        description="Safetensors file that `deltamend calibrate activations` made from the base model."
    )

    @field_serializer("activations")
    def _name_and_content(self, path: Path) -> str:
        return name_and_content(path, self.name)

    def survey(self, deltas: Deltas) -> None:
        """Refuse a file that was computed from another model, and so holds the inputs of none of the matrices.

        Raises:
            MethodError: a file holds the inputs of no matrix, or cannot be read.
        """
        refuse_other_model(self.activations, deltas)

    def inputs(self, delta: Blocks, context: TensorContext) -> Inputs | KeptDelta:
        """The inputs of a delta's columns in the base model, or what is kept where nothing is known of them."""
        found = inputs_of(self.activations, context, delta.shape[1])
        if found is None:
            return KeptDelta.identity("the file of activations has nothing of its input")
        return found if found.values.any() else KeptDelta.identity("its input was always 0")
