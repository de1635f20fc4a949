"""One repair of a study: its method, what is written, the part it plays in comparisons, and the cells in which it is made."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from deltamend.errors import MethodError
from deltamend.methods.registry import get_method
from deltamend.records import FiniteRecord
from deltamend.repairing.rounding import Rounding
from deltamend.repairing.rules import Rule, Rules, Vectors

_RESERVED = ("base", "finetuned", "none", "revert")
OWN = "own"
"""As the value of `activations`: of the base, over texts that it writes itself; of `target_activations`: likewise the fine-tuned model."""
TRAINING = "training"
"""As the value of `target_activations`: of the fine-tuned model, over a few of the examples that it was trained on."""
TRAINING_EXAMPLES = 32
"""As many prompts and answers of the new task as a user can nearly always give."""


class OwnTexts(FiniteRecord):
    """The texts that a model writes itself, for repairs that go by its activations; see `deltamend calibrate activations`."""

    samples: int = Field(default=48, ge=1, description="Number of texts.")
    tokens: int = Field(default=96, ge=2, description="Tokens of each text.")
    seed: int = Field(default=0, ge=0, description="Random seed of what is written.")


class Repair(FiniteRecord):
    """One repair that is made of every fine-tuned model."""

    name: str = Field(description="Its name in the results.")
    method: str = Field(description="Name of a method, as `deltamend methods` lists them.")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="Parameters of the method. `activations: own` stands for those of the base over texts of its own; "
        "`target_activations: own` for those of the fine-tuned model over its own, and `target_activations: training` for those "
        f"of the fine-tuned model over {TRAINING_EXAMPLES} training examples.",
    )
    rules: Rules = Field((), description="Other methods for some tensors, as in a config of `deltamend repair`.")
    vectors: Vectors = Field(
        "finetuned", description="What norms and biases follow: finetuned, base, or a number between 0 and 1."
    )
    out_dtype: Literal["stored", "float32", "bfloat16"] = Field(
        "float32", description="Dtype that is written; stored is that of the fine-tuned model."
    )
    rounding: Rounding = Field("nearest", description="How repaired weights are rounded, as in `deltamend repair`.")
    role: Literal["published", "strength", "control", "candidate", "dtype"] = Field(
        "published",
        description="published: a method at its published setting; strength: the same at another strength; control: what a "
        "method must beat; candidate: of ours; dtype: about what is written; candidates must beat "
        "a published method in that dtype, too, where it is written so in every cell.",
    )
    family: str | None = Field(
        None, description="Name that the strengths of one method share; by default its method, or with rules its name."
    )
    finetuned_texts: OwnTexts | None = Field(
        None,
        description="The texts that the fine-tuned model writes where `target_activations` are `own`; by default the study's own_texts.",
    )
    safety: bool = Field(False, description="Ask the safety tasks too.")
    regimes: tuple[str, ...] = Field((), description="Make it in these regimes only; empty for all.")
    only_choosing: bool = Field(False, description="Make it in the choosing cells only; it is not confirmed.")
    only_in: tuple[str, ...] = Field(
        (),
        description="Names of the only cells in which it is made, such as those it had been tried in when it was dropped.",
    )
    not_in: tuple[str, ...] = Field(
        (), description="Names of cells in which it is not made, such as those that had been seen when it was picked."
    )

    def what_decides(self) -> list[object]:
        """All that decides what is written: methods with their defaults, and files by their content.

        Raises:
            MethodError: there is no such method, or a parameter is wrong.
        """
        made_later = self._made_later
        method = get_method(self.method, {**self.parameters, **made_later}).model_dump(mode="json")
        return [
            self.method,
            {name: value for name, value in method.items() if name not in made_later},
            [
                [rule.model_dump(include={"filter", "layers", "kind"}), rule.method, self._of_rule(rule)]
                for rule in self.rules
            ],
            self.vectors,
            self.out_dtype,
            self.safety,
            *([] if self.rounding == "nearest" else [self.rounding]),
        ]

    def _of_rule(self, rule: Rule) -> dict[str, Any]:
        made_later = {} if rule.method is not None else self._made_later
        inherited = {} if rule.method is not None else {**self.parameters, **made_later}
        method = get_method(rule.method or self.method, {**inherited, **rule.parameters}).model_dump(mode="json")
        standins = made_later.keys() - rule.parameters.keys()
        return {name: value for name, value in method.items() if name not in standins}

    @property
    def _made_later(self) -> dict[str, str]:
        """Files of activations are made when the study runs; any other stands for them until then."""
        made = {"activations": self.needs_activations, "target_activations": self.target_texts is not None}
        return {name: __file__ for name, later in made.items() if later}

    @property
    def needs_activations(self) -> bool:
        """Whether it goes by the base's own activations."""
        return self.parameters.get("activations") == OWN

    @property
    def target_texts(self) -> Literal["own", "training"] | None:
        """The texts over which the fine-tuned model's activations are computed; None where it does not go by them."""
        found = self.parameters.get("target_activations")
        return found if found in (OWN, TRAINING) else None

    @model_validator(mode="after")
    def _is_a_method(self) -> Self:
        try:
            self.what_decides()
        except MethodError as error:
            raise ValueError(str(error)) from error
        if self.finetuned_texts is not None and self.target_texts != OWN:
            raise ValueError(f"finetuned_texts has no effect without target_activations: {OWN}; leave it out")
        if self.name in _RESERVED:
            raise ValueError(f"{self.name} is not the name of a repair; take another")
        return self


def family_of(repair: Repair) -> str:
    """What strengths of one method have in common; with rules a repair is no strength of its method."""
    return repair.family or (repair.name if repair.rules else repair.method)


def same_but_dtype(one: Repair, other: Repair) -> bool:
    """Whether two repairs differ in nothing but what is written, and what they are called."""
    fields = ("method", "parameters", "finetuned_texts", "rules", "vectors", "rounding")
    return all(getattr(one, field) == getattr(other, field) for field in fields)
