"""What a study is: its grid of cells, how a model is fine-tuned in each, which repairs are made, what every model is asked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from deltamend.errors import UsageError
from deltamend.evaluation.suite import SuiteTask
from deltamend.machine.yaml_text import YamlError, read_yaml
from deltamend.recipes.regime import Regime
from deltamend.records import FiniteRecord, first_problem
from deltamend.study.exam_config import Exam, Items
from deltamend.study.repair_config import OwnTexts, Repair

_LONGEST_NAME = 60
"""Bytes; four of them make the name of a file, which may have 255."""
_NAME = re.compile(r"[\w][\w.+-]*")


class ModelEntry(FiniteRecord):
    """A base model."""

    name: str = Field(description="Its name in the results.")
    source: str = Field(
        description="A folder, a hub id, or `demo` for the demo's SmolLM2-135M-Instruct, which needs no hub."
    )
    chat_template: str | None = Field(None, description="Jinja text used in place of the model's own.")
    local: str | None = Field(
        None, description="A folder or GGUF file read in place of `source`, which keeps its name; `--model NAME=PATH`."
    )
    dtype: Literal["stored", "bfloat16"] = Field(
        "stored",
        description="Dtype that the base is given to everything in. bfloat16 rounds one that was unpacked to float32, such as a GGUF file, to what its makers publish.",
    )
    targets: tuple[str, ...] = Field((), description="Names of its targets; empty for all.")
    regimes: tuple[str, ...] = Field((), description="Names of its regimes; empty for all.")
    seeds: tuple[int, ...] = Field((), description="Its seeds; empty for all.")
    tasks: tuple[SuiteTask, ...] = Field((), description="Benchmarks asked of its models besides those of the exam.")
    safety: tuple[SuiteTask, ...] = Field((), description="Safety benchmarks likewise.")
    repairs: tuple[str, ...] = Field((), description="Names of the repairs made of its models; empty for all.")


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


class Choosing(FiniteRecord):
    """The cells that repairs may be chosen on; all others confirm."""

    targets: tuple[str, ...] = Field(description="Names of targets.")
    seeds: tuple[int, ...] = Field(description="Seeds; a cell is for choosing if its target and its seed are listed.")
    models: tuple[str, ...] = Field((), description="Names of base models whose cells are for choosing; empty for all.")


class Measure(FiniteRecord):
    """How repairs are compared at equal retention; frozen before a confirmation cell runs."""

    curve: str = Field("wise-ft", description="Family whose strengths make the curve that repairs are compared with.")
    standard_errors: float = Field(
        2.0, ge=0, description="A benchmark is damaged from this many standard errors of the paired difference on."
    )
    at_least: float = Field(0.01, ge=0, description="And from this difference on, in units of the score.")
    floors: tuple[float, ...] = Field(
        (0.9, 0.95), description="Retentions that a strength has to keep, where healing at a floor is asked."
    )


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
    own_texts: OwnTexts = Field(
        OwnTexts(),
        description="The texts that a base writes for null-space and two-sided, and a fine-tuned model for two-sided.",
    )
    choosing: Choosing = Field(
        Choosing(targets=(), seeds=(), models=()),
        description="Cells that repairs may be chosen on; all others confirm.",
    )
    measure: Measure | None = Field(
        None, description="The primary measure; None for a study that goes by the combined score alone."
    )
    confirm: bool | tuple[str, ...] = Field(
        True,
        description="Whether confirmation cells are run: false until what they are to confirm is frozen. A list of names for those "
        "that are run alone.",
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
                if len(name.encode()) > _LONGEST_NAME or name.endswith((".json", ".jsonl", ".part")):
                    raise ValueError(f"{what}: {name!r} is the name of a file of the study, or too long; give another")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one occurs twice")
        known = {
            "models": {model.name for model in self.models},
            "targets": {target.name for target in self.targets},
            "regimes": {one.name for one in self.regimes},
            "repairs": {one.name for one in self.repairs},
        }
        for seed in self.choosing.seeds:
            if seed not in self.seeds:
                raise ValueError(f"choosing: no seed {seed}; there are {', '.join(map(str, self.seeds))}")
        wanted = [("targets", name, "choosing") for name in self.choosing.targets]
        wanted += [("models", name, "choosing") for name in self.choosing.models]
        wanted += [("regimes", name, f"repairs.{repair.name}") for repair in self.repairs for name in repair.regimes]
        confirmed = () if isinstance(self.confirm, bool) else self.confirm
        wanted += [("cells", name, "confirm") for name in confirmed]
        named = confirmed or any(one.only_in or one.not_in for one in self.repairs)
        known["cells"] = {cell.name for cell in self.cells()} if named else set()
        for model in self.models:
            wanted += [("targets", name, f"models.{model.name}") for name in model.targets]
            wanted += [("regimes", name, f"models.{model.name}") for name in model.regimes]
            wanted += [("repairs", name, f"models.{model.name}") for name in model.repairs]
            self.exam_of(model)
        wanted += [
            ("cells", name, f"repairs.{repair.name}")
            for repair in self.repairs
            for name in (*repair.only_in, *repair.not_in)
        ]
        for what, name, where in wanted:
            if name not in known[what]:
                raise ValueError(f"{where}: no {what[:-1]} {name!r}; there are {', '.join(sorted(known[what]))}")
        return self

    def cells(self) -> list[StudyCell]:
        """The grid, choosing cells first, then seed by seed."""

        def wanted(model: ModelEntry, target: Target, regime: Regime, seed: int) -> bool:
            return all(
                not own or one in own
                for own, one in (
                    (model.targets, target.name),
                    (model.regimes, regime.name),
                    (model.seeds, seed),
                )
            )

        def order(cell: StudyCell) -> tuple[bool, int]:
            return (not self.chooses(cell), self.seeds.index(cell.seed))

        whole = product(self.models, self.targets, self.regimes, self.seeds)
        return sorted((StudyCell(*one) for one in whole if wanted(*one)), key=order)

    def cells_to_run(self) -> list[StudyCell]:
        """The cells that are run, each target of a model with another regime in turn.

        A run that is cut short has so seen every target and every regime about as often. Cells that confirm wait where
        `confirm` says so.
        """
        targets, regimes = ([one.name for one in own] for own in (self.targets, self.regimes))

        def order(cell: StudyCell) -> tuple[bool, int, int, int, int]:
            target, regime = targets.index(cell.target.name), regimes.index(cell.regime.name)
            model = self.models.index(cell.model)
            return (
                not self.chooses(cell),
                self.seeds.index(cell.seed),
                model,
                (regime - target) % len(regimes),
                target,
            )

        return sorted((cell for cell in self.cells() if self.chooses(cell) or self._confirms(cell)), key=order)

    def planned_cells(self) -> list[StudyCell]:
        """The cells that the study is to have in the end, in the order of `cells`: all, or where `confirm` lists some, these and the choosing cells."""
        everything = isinstance(self.confirm, bool)
        return [cell for cell in self.cells() if everything or self.chooses(cell) or self._confirms(cell)]

    def _confirms(self, cell: StudyCell) -> bool:
        return self.confirm if isinstance(self.confirm, bool) else cell.name in self.confirm

    def exam_of(self, model: ModelEntry) -> Exam:
        """What the models made of a base are asked.

        Raises:
            ValueError: two tasks have one name.
        """
        more = {"tasks": (*self.exam.tasks, *model.tasks), "safety": (*self.exam.safety, *model.safety)}
        return Exam.model_validate({**self.exam.model_dump(), **more})

    def chooses(self, cell: StudyCell) -> bool:
        """Whether repairs may be chosen on this cell."""
        wanted = self.choosing
        known_model = not wanted.models or cell.model.name in wanted.models
        return known_model and cell.target.name in wanted.targets and cell.seed in wanted.seeds

    def repairs_of(self, cell: StudyCell) -> Iterator[Repair]:
        """The repairs that are made in a cell."""
        for repair in self.repairs:
            limits = (
                (repair.regimes, cell.regime.name),
                (repair.only_in, cell.name),
                (cell.model.repairs, repair.name),
            )
            if any(names and one not in names for names, one in limits) or cell.name in repair.not_in:
                continue
            if not repair.only_choosing or self.chooses(cell):
                yield repair


def read_study(path: Path) -> Study:
    """Read a study's YAML file.

    Raises:
        UsageError: it cannot be read, or a field is wrong.
    """
    try:
        content = read_yaml(path)
    except YamlError as error:
        raise UsageError(f"{path}: cannot be read as YAML ({error}); correct it") from error
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise UsageError(f"{path}: {field or 'the study'}: {problem}; correct it") from error
