"""Training data: a JSONL file of prompts and completions, or of chats, in the shapes that TRL takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deltamend.errors import UsageError
from deltamend.language_models.loading import clockless_template, plain_tokens
from deltamend.machine.bounded_files import UnreadableError, read_text
from deltamend.machine.templates import limited_templates
from deltamend.records import first_problem

if TYPE_CHECKING:
    from deltamend.language_models.training import Example

_LARGEST = 1_000_000_000
"""Bytes that a file of training data may have."""
_FORMS = '{"prompt": …, "completion": …} or {"messages": […]}'


class Message(BaseModel):
    """One message of a chat; other fields of it are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Literal["system", "user", "assistant"]
    content: str


class TrainingExample(BaseModel):
    """A prompt, which is given, and a completion, which is learnt; both are text, or both are messages of a chat."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str | tuple[Message, ...] = Field(min_length=1)
    completion: str | tuple[Message, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _from_messages(cls, line: Any) -> Any:
        """A chat is learnt by its last message."""
        if isinstance(line, dict) and "messages" in line and "prompt" not in line:
            messages = line["messages"]
            if not isinstance(messages, list) or len(messages) < 2:
                raise ValueError("messages: is no list of two messages or more")
            return {"prompt": messages[:-1], "completion": messages[-1:]}
        if not isinstance(line, dict) or not {"prompt", "completion"} <= line.keys():
            raise ValueError(f"a line is {_FORMS}")
        return line

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if isinstance(self.prompt, str) != isinstance(self.completion, str):
            raise ValueError("prompt and completion are both text, or both lists of messages")
        if not isinstance(self.completion, str) and any(one.role != "assistant" for one in self.completion):
            raise ValueError("what is learnt, the last message, is not of the role assistant")
        return self

    @property
    def is_chat(self) -> bool:
        """Whether it is made of messages."""
        return not isinstance(self.prompt, str)

    def for_trl(self) -> dict[str, Any]:
        """As TRL takes it."""
        return self.model_dump(mode="json")


def read_training_data(path: Path) -> tuple[TrainingExample, ...]:
    """The examples of a JSONL file, one for each line; empty lines are skipped.

    Raises:
        UsageError: the file cannot be read, holds no example or both kinds, or has a line of another form.
    """
    try:
        lines = read_text(path, _LARGEST).split("\n")
    except UnreadableError as error:
        raise UsageError(f"{path}: cannot be read ({error}); give a JSONL file of lines {_FORMS}") from error
    examples: list[TrainingExample] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = TrainingExample.model_validate_json(line)
        except ValidationError as error:
            field, problem = first_problem(error)
            form = "" if _FORMS in problem else f"; a line is {_FORMS}"
            raise UsageError(f"{path}, line {number}: {f'{field}: ' if field else ''}{problem}{form}") from error
        if examples and examples[0].is_chat != found.is_chat:
            raise UsageError(f"{path}, line {number}: chats and plain texts are mixed; give two files and train twice")
        examples.append(found)
    if not examples:
        raise UsageError(f"{path}: holds no example; give a JSONL file of lines {_FORMS}")
    return tuple(examples)


def as_token_examples(examples: Sequence[TrainingExample], tokenizer: Any, max_length: int) -> list[Example]:
    """The token ids of each example, cut at `max_length`, for recipes that take old examples.

    Raises:
        UsageError: an example has nothing to learn within `max_length` tokens, or the chat template fails.
    """
    from deltamend.language_models.training import Example  # torch

    found = []
    for number, example in enumerate(examples, 1):
        try:
            prompt, whole = _chat_tokens(example, tokenizer) if example.is_chat else _text_tokens(example, tokenizer)
        except Exception as error:  # a template is a program, and may raise what it likes
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"old example {number} cannot be tokenised ({reason}); leave it out") from error
        same = next((place for place, pair in enumerate(zip(prompt, whole, strict=False)) if pair[0] != pair[1]), None)
        given = max(1, min(len(prompt), len(whole)) if same is None else same)
        if given >= min(len(whole), max_length):
            raise UsageError(
                f"old example {number}: its prompt has {given} tokens, which leaves nothing to predict within max_length "
                f"({max_length}); leave it out"
            )
        found.append(Example(prompt=whole[:given], answer=whole[given:max_length]))
    return found


def _text_tokens(example: TrainingExample, tokenizer: Any) -> tuple[list[int], list[int]]:
    prompt = plain_tokens(tokenizer, str(example.prompt))
    return prompt, [*prompt, *plain_tokens(tokenizer, str(example.completion)), tokenizer.eos_token_id]


def _chat_tokens(example: TrainingExample, tokenizer: Any) -> tuple[list[int], list[int]]:
    line = example.for_trl()
    template = clockless_template(tokenizer)
    with limited_templates():
        texts = [
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked, chat_template=template)
            for messages, asked in ((line["prompt"], True), ([*line["prompt"], *line["completion"]], False))
        ]
    return plain_tokens(tokenizer, texts[0]), plain_tokens(tokenizer, texts[1])
