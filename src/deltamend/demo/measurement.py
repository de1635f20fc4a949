"""Five measurements of one checkpoint, each with the interval that its sample size allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deltamend.demo.intervals import mean_interval, wilson_interval
from deltamend.demo.model_replies import choose, log_likelihoods, replies
from deltamend.demo.probes import Choice, Probes
from deltamend.demo.sums_task import Problem, is_exact
from deltamend.evaluation.language_check import answered_in_words
from deltamend.language_models.loading import LoadedModel, chat_prompt, plain_tokens

TARGET, CHAT, LIKELIHOOD, KNOWLEDGE, COMPLETION = "target", "chat", "likelihood", "knowledge", "completion"


@dataclass(frozen=True)
class Measurement:
    """One number, its 95% interval, and the items behind it.

    Attributes:
        value: a share in [0, 1], or nats a token.
        low: lower end of the interval.
        high: upper end of the interval.
        n: questions asked, or tokens predicted.
        items: the result of each question (0 or 1) or each passage (nats a token), in the exam's order, so that two
            models can be compared item by item.
        higher_is_better: whether a larger value is the better one.
    """

    value: float
    low: float
    high: float
    n: int
    items: tuple[float, ...]
    higher_is_better: bool = True


@dataclass(frozen=True)
class DemoExam:
    """Everything one model is asked; the same for every model of a run."""

    problems: tuple[Problem, ...]
    probes: Probes
    reply_tokens: int


@dataclass(frozen=True)
class Measured:
    """One model's results: an estimate for each measure, and its replies in the order of the exam's prompts."""

    estimates: dict[str, Measurement]
    target_replies: tuple[str, ...]
    chat_replies: tuple[str, ...]


def exam_length(exam: DemoExam) -> int:
    """How many items `measure` reports through its `advance`."""
    probes = exam.probes
    return len(exam.problems) + len(probes.chat) + len(probes.prose) + len(probes.knowledge) + len(probes.completion)


def measure(loaded: LoadedModel, exam: DemoExam, advance: Callable[[int], None]) -> Measured:
    """Put a model through the exam; `advance` counts `exam_length(exam)` items."""
    model, tokenizer = loaded

    def ask(question: str) -> list[int]:
        return chat_prompt(tokenizer, question)

    longest_answer = 1 + max(len(plain_tokens(tokenizer, problem.answer)) for problem in exam.problems)
    sums = replies(
        model, tokenizer, [ask(p.question) for p in exam.problems], max_tokens=longest_answer + 4, advance=advance
    )
    chats = replies(model, tokenizer, [ask(c) for c in exam.probes.chat], max_tokens=exam.reply_tokens, advance=advance)
    likelihood = nats_per_token(model, tokenizer, exam.probes.prose)
    advance(len(exam.probes.prose))
    knowledge = accuracy(exam.probes.knowledge, choose(model, tokenizer, exam.probes.knowledge, ask))
    advance(len(exam.probes.knowledge))
    completed = choose(model, tokenizer, exam.probes.completion, lambda text: plain_tokens(tokenizer, text))
    advance(len(exam.probes.completion))
    estimates = {
        TARGET: share([is_exact(reply, p) for reply, p in zip(sums, exam.problems, strict=True)]),
        CHAT: share([answered_in_words(reply) for reply in chats]),
        LIKELIHOOD: likelihood,
        KNOWLEDGE: knowledge,
        COMPLETION: accuracy(exam.probes.completion, completed),
    }
    return Measured(estimates, target_replies=tuple(sums), chat_replies=tuple(chats))


def share(outcomes: Sequence[bool]) -> Measurement:
    """The share of true outcomes, with its Wilson interval."""
    hits, n = sum(outcomes), len(outcomes)
    low, high = wilson_interval(hits, n)
    return Measurement(value=hits / n, low=low, high=high, n=n, items=tuple(map(float, outcomes)))


def accuracy(questions: Sequence[Choice], chosen: Sequence[int]) -> Measurement:
    """The share of questions whose chosen index is the right one."""
    return share([question.answer == index for question, index in zip(questions, chosen, strict=True)])


def nats_per_token(model: Any, tokenizer: Any, passages: Sequence[str]) -> Measurement:
    """Mean negative log-likelihood of ordinary text in nats a token; the interval comes from the spread over passages.

    The first token of a passage is given, not predicted.
    """
    ids = [plain_tokens(tokenizer, passage) for passage in passages]
    scores = log_likelihoods(model, [(tokens[:1], tokens[1:]) for tokens in ids])
    counts = [len(tokens) - 1 for tokens in ids]
    nats = tuple(-score / count for score, count in zip(scores, counts, strict=True))
    mean, low, high = mean_interval(nats, counts)
    return Measurement(value=mean, low=low, high=high, n=sum(counts), items=nats, higher_is_better=False)
