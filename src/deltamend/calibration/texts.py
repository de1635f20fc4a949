"""Calibration texts: a JSONL file of texts, or of prompts with responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from deltamend.errors import UsageError
from deltamend.language_models.loading import chat_prompt, plain_tokens
from deltamend.language_models.training import Example
from deltamend.machine.bounded_files import UnreadableError, read_text
from deltamend.records import first_problem

_LARGEST = 1_000_000_000
"""Bytes a file of texts may have."""


class CalibrationText(BaseModel):
    """One line: `{"text": …}` or `{"prompt": …, "response": …}`; `completion` is another name of the response.

    Of a text, every token after the first is predicted; of the other form, the response.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str | None = Field(None, min_length=1)
    prompt: str | None = Field(None, min_length=1)
    response: str | None = Field(None, min_length=1, validation_alias=AliasChoices("response", "completion"))

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if (self.text is None) == (self.prompt is None) or (self.prompt is None) != (self.response is None):
            raise ValueError('a line is {"text": …} or {"prompt": …, "response": …}')
        return self


def read_texts(path: Path) -> tuple[CalibrationText, ...]:
    """The texts of a JSONL file, one for each line; empty lines are skipped.

    Raises:
        UsageError: the file cannot be read, holds no text, or has a line of another form.
    """
    try:
        # Not splitlines: a text may hold U+2028 or another line end of Unicode, which JSON leaves as they are.
        lines = read_text(path, _LARGEST).split("\n")
    except UnreadableError as error:
        raise UsageError(f"{path}: cannot be read ({error}); give a JSONL file of texts") from error
    texts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                texts.append(CalibrationText.model_validate_json(line))
            except ValidationError as error:
                raise UsageError(f"{path}, line {number}: {first_problem(error)[1]}") from error
    if not texts:
        raise UsageError(f"{path}: holds no text; give a JSONL file of texts")
    return tuple(texts)


def as_examples(texts: tuple[CalibrationText, ...], tokenizer: Any, *, chat: bool, max_tokens: int) -> list[Example]:
    """The token ids of each text: those that are given, and those that are predicted.

    Args:
        texts: what to tokenise.
        tokenizer: the tokenizer of the model.
        chat: whether a prompt is one message of a chat, put through the model's template.
        max_tokens: longer texts are cut at their end, long prompts at their beginning.

    Raises:
        UsageError: a text has too few tokens to predict one.
    """
    examples = []
    for number, text in enumerate(texts, 1):
        if text.text is not None:
            tokens = plain_tokens(tokenizer, text.text)[:max_tokens]
            example = Example(prompt=tokens[:1], answer=tokens[1:])
        else:
            answer = plain_tokens(tokenizer, str(text.response))[: max_tokens - 1]
            if chat and tokenizer.eos_token_id is not None:
                answer.append(tokenizer.eos_token_id)
            asked = str(text.prompt)
            prompt = chat_prompt(tokenizer, asked) if chat else plain_tokens(tokenizer, asked)
            example = Example(prompt=prompt[-max(1, max_tokens - len(answer)) :], answer=answer)
        if not example.prompt or not example.answer:
            raise UsageError(f"text {number} has too few tokens to predict one; leave it out")
        examples.append(example)
    return examples
