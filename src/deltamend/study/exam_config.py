"""What every model of a study is asked besides its target: where the items come from, and how they are put."""

from __future__ import annotations

from collections import Counter
from typing import Literal, Self

from pydantic import Field, model_validator

from deltamend.evaluation.suite import SuiteTask
from deltamend.records import FiniteRecord
from deltamend.study.records import FORM, OWN_ANSWERS, TARGET, TARGET_LIKELIHOOD


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


class GeneralPrompts(FiniteRecord):
    """What people ask a chat model: the base's own answers to these are what fine-tuning may unlearn."""

    name: str = Field(
        "", description="Follows the names of the tasks made of these prompts; may be empty for the first prompts only."
    )
    items: Items = Field(description="The prompts.")
    question: str = Field("{{question}}", description="Jinja text around an item's fields: what the user says.")
    count: int = Field(32, ge=8, description="Prompts, spread evenly over the items.")
    max_tokens: int = Field(
        32, ge=4, description="Longest answer that the base gives, and that others are watched for."
    )
    form: bool = Field(True, description="Also watch for the target's form in generated replies to them.")

    @property
    def own_answers(self) -> str:
        """Name of the task that scores the base's own answers to these prompts."""
        return _named(OWN_ANSWERS, self.name)

    @property
    def keeps_form(self) -> str:
        """Name of the task that looks at the form of replies to these prompts."""
        return _named(FORM, self.name)


class GivenAnswers(FiniteRecord):
    """Questions whose right answers are known, or texts with what follows in them, scored by likelihood."""

    name: str = Field(description="Name of the task.")
    items: Items = Field(description="The questions or texts.")
    question: str = Field("{{question}}", description="Jinja text around an item's fields: what is given.")
    answer: str = Field("{{answer}}", description="Jinja text around an item's fields: what is scored.")
    chat: bool = Field(
        True, description="Ask as a user of a chat; else `answer` follows `question` and a blank, as in running text."
    )
    count: int = Field(32, ge=8, description="Items, spread evenly.")


class Exam(FiniteRecord):
    """What every model is asked besides the target."""

    general: GeneralPrompts = Field(description="Prompts of daily life.")
    more_general: tuple[GeneralPrompts, ...] = Field((), description="Prompts of other sources, each with a name.")
    given_answers: tuple[GivenAnswers, ...] = Field((), description="Right answers and running text, by likelihood.")
    tasks: tuple[SuiteTask, ...] = Field((), description="Benchmarks, as in the file of a suite.")
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

    @property
    def sources(self) -> tuple[GeneralPrompts, ...]:
        """The prompts of every source."""
        return (self.general, *self.more_general)

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Names of all tasks but those of the target and of safety, in the order in which they are asked."""
        own = [source.own_answers for source in self.sources]
        form = [source.keeps_form for source in self.sources if source.form]
        return (*own, *form, *(one.name for one in self.given_answers), *(task.name for task in self.tasks))

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [TARGET, TARGET_LIKELIHOOD, *self.benchmarks, *(task.name for task in self.safety)]
        for name, times in Counter(names).items():
            if times > 1:
                raise ValueError(f"two tasks are named {name}; take another name for one of them")
        return self


def _named(task: str, source: str) -> str:
    return f"{task}_{source}" if source else task
