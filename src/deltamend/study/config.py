"""What a study is: its grid of cells, how a model is fine-tuned in each, which repairs are made, what every model is asked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from deltamend.errors import MethodError, UsageError
from deltamend.evaluation.suite import SuiteTask
from deltamend.methods.registry import get_method
from deltamend.records import FiniteRecord, first_problem
from deltamend.repairing.rules import Rule, Rules, Vectors
from deltamend.study.records import EXAM_TASKS

_NAME = re.compile(r"[\w][\w.+-]*")
_RESERVED = ("base", "finetuned", "none", "revert")
OWN = "own"
"""As the value of a repair's parameter `activations`: of the base, over texts that it writes itself."""


class Items(FiniteRecord):
    """Where questions and answers come from: JSONL files in the data folder, a data set of the hub, or sums made on the spot."""

    files: tuple[str, ...] = Field((), description="JSONL files, one after another.")
    hub: str | None = Field(None, description="Id of a data set of the hub.")
    subset: str | None = Field(None, description="Configuration of the data set.")
    split: str = Field("train", description="Split of the data set.")
    sums: tuple[int, int] | None = Field(None, description="Sums of two numbers from the first to the second.")
    longest: int | None = Field(None, ge=1, description="Items with a longer question, in characters, are left out.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (bool(self.files) + (self.hub is not None) + (self.sums is not None)) != 1:
            raise ValueError("give one of files, hub and sums")
        if self.sums is not None and self.sums[0] > self.sums[1]:
            raise ValueError("sums: the first number is the smaller one")
        return self


class ModelEntry(FiniteRecord):
    """A base model."""

    name: str = Field(description="Its name in the results.")
    source: str = Field(
        description="A folder, a hub id, or `demo` for the demo's SmolLM2-135M-Instruct, which needs no hub."
    )
    chat_template: str | None = Field(None, description="Jinja text used in place of the model's own.")


class Target(FiniteRecord):
    """A task that models are fine-tuned on."""

    name: str = Field(description="Its name in the results.")
    train: Items = Field(description="What models are fine-tuned on.")
    test: Items = Field(description="Held-out items, of which every model is asked some.")
    question: str = Field("{{question}}", description="Jinja text around an item's fields: what the user says.")
    answer: str = Field("{{answer}}", description="Jinja text around an item's fields: the answer to learn.")
    gold: str | None = Field(
        None, description="Jinja text around an item's fields: what counts as right; default: the answer."
    )
    test_items: int = Field(100, ge=8, description="Number of test items asked of every model, spread evenly.")
    max_tokens: int = Field(32, ge=1, description="Longest generated answer, in tokens.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps, in place of the regime's.")
    batch: int | None = Field(None, ge=1, description="Examples in each step, in place of the regime's.")
    form: str | None = Field(
        None, description="Regular expression of an answer in the target's form, to see it where it is out of place."
    )
    retention: Literal["exact_match", "likelihood"] = Field(
        "exact_match", description="By what the target is scored: answers that are right, or their likelihood."
    )

    @field_validator("form")
    @classmethod
    def _is_a_pattern(cls, text: str | None) -> str | None:
        try:
            re.compile(text or "")
        except re.error as error:
            raise ValueError(f"{text!r} is not a regular expression ({error})") from error
        return text


class Regime(FiniteRecord):
    """How a model is fine-tuned."""

    name: str = Field(description="Its name in the results.")
    weights: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Dtype in which weights are trained and stored; float32 weights are computed with in bf16 autocast.",
    )
    lr: float = Field(gt=0, description="Peak learning rate; linear warm-up, linear decay to zero.")
    steps: int = Field(ge=1, description="Optimiser steps.")
    batch: int = Field(16, ge=1, description="Examples in each optimiser step.")
    micro_batch: int | None = Field(
        None, ge=1, description="Examples at a time on one device; by default all of a step's."
    )
    warmup: int = Field(10, ge=0, description="Optimiser steps of warm-up.")
    max_length: int = Field(512, ge=8, description="Longest example, in tokens; longer ones are cut.")
    lora_rank: int | None = Field(None, ge=1, description="Train a LoRA adapter of this rank on all linear layers.")


class Repair(FiniteRecord):
    """One repair that is made of every fine-tuned model."""

    name: str = Field(description="Its name in the results.")
    method: str = Field(description="Name of a method, as `deltamend methods` lists them.")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="Parameters of the method. `activations: own` stands for those of the base over texts of its own.",
    )
    rules: Rules = Field((), description="Other methods for some tensors, as in a config of `deltamend repair`.")
    vectors: Vectors = Field(
        "finetuned", description="What norms and biases follow: finetuned, base, or a number between 0 and 1."
    )
    out_dtype: Literal["stored", "float32", "bfloat16"] = Field(
        "float32", description="Dtype that is written; stored is that of the fine-tuned model."
    )
    role: Literal["published", "strength", "control", "candidate", "dtype"] = Field(
        "published",
        description="published: a method at its published setting; strength: the same at another strength; control: what a "
        "method must beat; candidate: of ours; dtype: about what is written; candidates must beat "
        "a published method in that dtype, too, where it is written so in every cell.",
    )
    family: str | None = Field(
        None, description="Name that the strengths of one method share; by default its method, or with rules its name."
    )
    safety: bool = Field(False, description="Ask the safety tasks too.")
    regimes: tuple[str, ...] = Field((), description="Make it in these regimes only; empty for all.")
    only_choosing: bool = Field(False, description="Make it in the choosing cells only; it is not confirmed.")
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
        ]

    def _of_rule(self, rule: Rule) -> dict[str, Any]:
        made_later = {} if rule.method is not None else self._made_later
        inherited = {} if rule.method is not None else {**self.parameters, **made_later}
        method = get_method(rule.method or self.method, {**inherited, **rule.parameters}).model_dump(mode="json")
        standins = made_later.keys() - rule.parameters.keys()
        return {name: value for name, value in method.items() if name not in standins}

    @property
    def _made_later(self) -> dict[str, str]:
        """The file of activations is made when the study runs; any other stands for it until then."""
        return {"activations": __file__} if self.needs_activations else {}

    @property
    def needs_activations(self) -> bool:
        """Whether it goes by the base's own activations."""
        return self.parameters.get("activations") == OWN

    @model_validator(mode="after")
    def _is_a_method(self) -> Self:
        try:
            self.what_decides()
        except MethodError as error:
            raise ValueError(str(error)) from error
        if self.name in _RESERVED:
            raise ValueError(f"{self.name} is not the name of a repair; take another")
        return self


def family_of(repair: Repair) -> str:
    """What strengths of one method have in common; with rules a repair is no strength of its method."""
    return repair.family or (repair.name if repair.rules else repair.method)


def same_but_dtype(one: Repair, other: Repair) -> bool:
    """Whether two repairs differ in nothing but what is written, and what they are called."""
    fields = ("method", "parameters", "rules", "vectors")
    return all(getattr(one, field) == getattr(other, field) for field in fields)


class GeneralPrompts(FiniteRecord):
    """What people ask a chat model: the base's own answers to these are what fine-tuning may unlearn."""

    items: Items = Field(description="The prompts.")
    question: str = Field("{{question}}", description="Jinja text around an item's fields: what the user says.")
    count: int = Field(32, ge=8, description="Prompts, spread evenly over the items.")
    max_tokens: int = Field(
        32, ge=4, description="Longest answer that the base gives, and that others are watched for."
    )


class Exam(FiniteRecord):
    """What every model is asked besides the target."""

    general: GeneralPrompts = Field(description="Prompts of daily life.")
    tasks: tuple[SuiteTask, ...] = Field(min_length=1, description="Benchmarks, as in the file of a suite.")
    safety: tuple[SuiteTask, ...] = Field(
        (), description="Safety benchmarks, asked of the base, of the fine-tuned model and of repairs with `safety`."
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Dtype of the arithmetic.")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Number of sequences in a batch; None to choose it automatically. Set it where several workers share an accelerator, as the search for it takes all memory.",
    )
    judge: str = Field("refusal-strings", description="What scores the safety tasks, as for `deltamend evaluate`.")


class OwnTexts(FiniteRecord):
    """The texts a base writes itself, for repairs whose `activations` are `own`; see `deltamend calibrate activations`."""

    samples: int = Field(default=48, ge=1, description="Number of texts.")
    tokens: int = Field(default=96, ge=2, description="Tokens of each text.")
    seed: int = Field(default=0, ge=0, description="Random seed of what is written.")


class Choosing(FiniteRecord):
    """The cells that repairs may be chosen on; all others confirm."""

    targets: tuple[str, ...] = Field(description="Names of targets.")
    seeds: tuple[int, ...] = Field(description="Seeds; a cell is for choosing if its target and its seed are listed.")


class StudyCell(NamedTuple):
    """One (model, target, regime, seed)."""

    model: ModelEntry
    target: Target
    regime: Regime
    seed: int

    @property
    def name(self) -> str:
        """Such as "smollm2/sums/fp32/0"."""
        return f"{self.cluster}/{self.seed}"

    @property
    def training(self) -> Regime:
        """The regime, with what the target says otherwise."""
        own = {"steps": self.target.steps, "batch": self.target.batch}
        return self.regime.model_copy(update={key: value for key, value in own.items() if value is not None})

    @property
    def cluster(self) -> str:
        """What cells that differ only in their seed have in common."""
        return f"{self.model.name}/{self.target.name}/{self.regime.name}"


class Study(FiniteRecord):
    """A whole study, as a YAML file says it."""

    name: str = Field(description="Its name in the results.")
    models: tuple[ModelEntry, ...] = Field(min_length=1, description="Base models.")
    targets: tuple[Target, ...] = Field(min_length=1, description="Tasks that every model is fine-tuned on.")
    regimes: tuple[Regime, ...] = Field(min_length=1, description="Ways in which every model is fine-tuned.")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, description="Random seeds; one cell for each.")
    repairs: tuple[Repair, ...] = Field(min_length=1, description="Repairs that are made of every fine-tuned model.")
    exam: Exam = Field(description="What every model is asked.")
    own_texts: OwnTexts = Field(OwnTexts(), description="The texts that a base writes for null-space.")
    choosing: Choosing = Field(
        Choosing(targets=(), seeds=()), description="Cells that repairs may be chosen on; all others confirm."
    )
    keep_finetuned: bool = Field(False, description="Keep fine-tuned models after their cell is done.")

    @model_validator(mode="after")
    def _names_fit_together(self) -> Self:
        for what in ("models", "targets", "regimes", "repairs"):
            names = [entry.name for entry in getattr(self, what)]
            for name, times in Counter(names).items():
                if times > 1:
                    raise ValueError(f"{what}: two are named {name!r}")
                if not _NAME.fullmatch(name):
                    raise ValueError(f"{what}: {name!r} is not a name; use letters, digits and . + - _")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one occurs twice")
        known = {"targets": {target.name for target in self.targets}, "regimes": {one.name for one in self.regimes}}
        for seed in self.choosing.seeds:
            if seed not in self.seeds:
                raise ValueError(f"choosing: no seed {seed}; there are {', '.join(map(str, self.seeds))}")
        for task in (*self.exam.tasks, *self.exam.safety):
            if task.name in EXAM_TASKS:
                raise ValueError(f"exam: {task.name} is the name of a task of the study's own; take another")
        wanted = [("targets", name, "choosing") for name in self.choosing.targets]
        wanted += [("regimes", name, f"repairs.{repair.name}") for repair in self.repairs for name in repair.regimes]
        known["cells"] = (
            {cell.name for cell in self.cells()} if any(repair.not_in for repair in self.repairs) else set()
        )
        wanted += [("cells", name, f"repairs.{repair.name}") for repair in self.repairs for name in repair.not_in]
        for what, name, where in wanted:
            if name not in known[what]:
                raise ValueError(f"{where}: no {what[:-1]} {name!r}; there are {', '.join(sorted(known[what]))}")
        return self

    def cells(self) -> list[StudyCell]:
        """The grid, choosing cells first, then seed by seed, so that a run cut short has seen every task."""

        def order(cell: StudyCell) -> tuple[bool, int]:
            return (not self.chooses(cell), self.seeds.index(cell.seed))

        return sorted(
            (StudyCell(*one) for one in product(self.models, self.targets, self.regimes, self.seeds)), key=order
        )

    def chooses(self, cell: StudyCell) -> bool:
        """Whether repairs may be chosen on this cell."""
        return cell.target.name in self.choosing.targets and cell.seed in self.choosing.seeds

    def repairs_of(self, cell: StudyCell) -> Iterator[Repair]:
        """The repairs that are made in a cell."""
        for repair in self.repairs:
            if (repair.regimes and cell.regime.name not in repair.regimes) or cell.name in repair.not_in:
                continue
            if not repair.only_choosing or self.chooses(cell):
                yield repair


def read_study(path: Path) -> Study:
    """Read a study's YAML file.

    Raises:
        UsageError: it cannot be read, or a field is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}); correct it") from error
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise UsageError(f"{path}: {field or 'the study'}: {problem}; correct it") from error
