"""One benchmark asked through lm-eval's `simple_evaluate`, and the score of each item taken from its samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltamend.errors import EvaluationError, UsageError, option
from deltamend.evaluation.jsonl_tasks import LIKELIHOODS
from deltamend.evaluation.judges import Judge, RefusalStrings
from deltamend.evaluation.lm_eval_tasks import LoadedTask
from deltamend.evaluation.local_items import ITEM_ID
from deltamend.evaluation.record import ItemScore, TaskScores
from deltamend.evaluation.rubrics import RUBRICS, Exchange
from deltamend.evaluation.suite import SuiteTask
from deltamend.evaluation.third_party_output import listening_for_truncations
from deltamend.machine.digests import json_sha256

_PREFERRED = ("acc_norm", "acc", "exact_match")
"""Metrics taken where a suite names none, the first that the task has."""

_CUT_PROMPTS = "prompts longer than the model's context were cut from the left"


@dataclass(frozen=True)
class AskOptions:
    """How benchmarks are asked.

    Attributes:
        limit: number of items of each benchmark, spread evenly over it; None for all.
        seed: seed of Python, numpy, torch and of the choice of worked examples; 0 to 2**32 - 1.
        judge: what scores the safety benchmarks.
        keep_responses: store generated answers in the record; those to harmful prompts may be harmful.
    """

    limit: int | None = None
    seed: int = 0
    judge: Judge = field(default_factory=RefusalStrings)
    keep_responses: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"{option('limit')}: {self.limit} items are none to ask; give 1 or more")
        if not 0 <= self.seed < 1 << 32:  # what numpy takes
            raise UsageError(f"{option('seed')}: {self.seed} is out of range; give 0 to {(1 << 32) - 1}")


def ask_benchmark(lm: Any, loaded: LoadedTask, options: AskOptions) -> TaskScores:
    """Ask every item, or as many as the suite and `options.limit` allow, and score each.

    Raises:
        EvaluationError: the task has no such metric or filter, or a score or log-likelihood is not finite.
    """
    entry = loaded.entry
    judged = entry.task in RUBRICS
    limit = min((one for one in (entry.limit, options.limit) if one is not None), default=None)
    chosen = _chosen({name: len(task.eval_docs) for name, task in loaded.members.items()}, limit)
    members = {name: task for name, task in loaded.members.items() if chosen[name]}
    if judged and entry.max_tokens is None:
        for task in members.values():
            longest = {"max_gen_toks": options.judge.answer_tokens}
            task.set_config(key="generation_kwargs", value=longest, update=True)
    asked_for = None if limit is None else {name: chosen[name] for name in members}
    results, were_cut = _simple_evaluate(lm, entry, members, asked_for, options.seed)
    samples = {name: _of_filter(entry.name, entry.filter, results["samples"][name]) for name in members}
    first = next(iter(members))
    metric = _metric(entry.name, entry.metric, samples[first][0]["metrics"])
    if not results["higher_is_better"].get(first, {}).get(metric, True):
        raise EvaluationError(f"{entry.name}: {metric} is better when it is lower; name another metric in the suite")
    items = [
        _item(entry.name, _item_id(sample, name if loaded.is_group else None), sample, metric, options)
        for name, logged in samples.items()
        for sample in logged
    ]
    logged = [sample for of_member in samples.values() for sample in of_member]
    weak = [_CUT_PROMPTS] if were_cut else []
    if judged:
        items, metric = _judged(str(entry.task), items, logged, options.judge)
        weak = [*([options.judge.weak] if options.judge.weak is not None else []), *weak]
    return TaskScores(
        metric=metric,
        version=str(results["versions"][first]),
        fewshot=int(results["n-shot"].get(first) or 0),
        chance=_chance(metric, logged),
        weak="; ".join(weak) or None,
        asked=_asked(samples[first][0]["filter"], results["configs"].get(first, {})),
        items=tuple(items),
    )


def _simple_evaluate(
    lm: Any, entry: SuiteTask, members: Mapping[str, Any], samples: Mapping[str, list[int]] | None, seed: int
) -> tuple[dict[str, Any], bool]:
    """What lm-eval returns, and whether it cut prompts that were too long.

    Raises:
        EvaluationError: the model, its template or the task's own scoring failed.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    lm.context_is_given = entry.task is None and entry.metric in LIKELIHOODS
    try:
        with listening_for_truncations() as truncations:
            results: dict[str, Any] = simple_evaluate(
                model=lm,
                tasks=list(members.values()),
                # The tasks are loaded; a task manager of lm-eval's own would index 14,000 files.
                task_manager=TaskManager(include_defaults=False),
                samples=samples,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=entry.chat and has_chat_template(lm),
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
    except EvaluationError:
        raise
    except Exception as error:  # the backend, the template and the task's own scoring can fail in any way
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise EvaluationError(
            f"{entry.name}: lm-eval failed ({reason}); leave it out with {option('skip', entry.name)}"
        ) from error
    return results, truncations.heard


def _judged(
    task: str, items: Sequence[ItemScore], samples: Sequence[dict[str, Any]], judge: Judge
) -> tuple[list[ItemScore], str]:
    """The items with the judge's scores in place of lm-eval's, and what these scores are called."""
    scores = judge.scores(task, [_exchange(sample) for sample in samples])
    rescored = [item.model_copy(update={"score": score}) for item, score in zip(items, scores, strict=True)]
    return rescored, judge.metric(task)


def _asked(answer_filter: str, config: Mapping[str, Any]) -> str:
    content = [answer_filter, config.get("output_type"), config.get("generation_kwargs")]
    return json_sha256(content)


def has_chat_template(lm: Any) -> bool:
    """Whether the model has a chat template: its tokenizer holds one, or a chat server applies its own."""
    tokenizer = getattr(lm, "tokenizer", None)
    if tokenizer is None:
        return "chat" in type(lm).__name__.lower()
    return getattr(tokenizer, "chat_template", None) is not None


def template_hash(lm: Any) -> str | None:
    """SHA-256 of the chat template that lm-eval applies; None where there is none, or a server keeps it to itself."""
    if getattr(lm, "tokenizer", None) is None or not has_chat_template(lm):
        return None
    return hashlib.sha256(lm.chat_template(True).encode()).hexdigest()


def _chosen(sizes: dict[str, int], limit: int | None) -> dict[str, list[int]]:
    """Positions of the items to ask in each member: all, or `limit` spread evenly over all members together.

    Files are often sorted by kind, so the first items would be of one kind.
    """
    total = sum(sizes.values())
    asked = total if limit is None else min(limit, total)
    positions = [index * total // asked for index in range(asked)]
    chosen: dict[str, list[int]] = {}
    start = 0
    for name, size in sizes.items():
        chosen[name] = [position - start for position in positions if start <= position < start + size]
        start += size
    return chosen


def _of_filter(name: str, wanted: str | None, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples as one answer filter saw them: lm-eval logs each item once a filter."""
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    if wanted is not None and wanted not in filters:
        raise EvaluationError(f"{name}: no answer filter {wanted!r}; the task has {', '.join(filters)}")
    return [sample for sample in samples if sample["filter"] == (wanted or filters[0])]


def _metric(name: str, wanted: str | None, known: Sequence[str]) -> str:
    if wanted is not None and wanted not in known:
        raise EvaluationError(f"{name}: no metric {wanted!r}; the task has {', '.join(known)}")
    return wanted or next((metric for metric in _PREFERRED if metric in known), known[0])


def _item_id(sample: dict[str, Any], member: str | None) -> str:
    own = sample["doc"].get(ITEM_ID, sample["doc_id"])
    return str(own) if member is None else f"{member}/{own}"


def _item(name: str, item_id: str, sample: dict[str, Any], metric: str, options: AskOptions) -> ItemScore:
    score = sample[metric]
    if not isinstance(score, bool | int | float) and not hasattr(score, "item"):
        raise EvaluationError(f"{name}: {metric} is not a score of a single item; name another metric in the suite")
    answers = sample["filtered_resps"]
    likelihoods = tuple(_likelihood(answer) for answer in answers if not isinstance(answer, str))
    if not all(map(math.isfinite, (float(score), *likelihoods))):
        raise EvaluationError(
            f"{name}: item {item_id}: a log-likelihood is not finite; the weights are damaged or overflow; try {option('dtype', 'float32')}"
        )
    generated = str(sample["resps"][0][0]) if not likelihoods else None
    return ItemScore(
        id=item_id,
        prompt_hash=hashlib.sha256(
            "".join(sample[part] for part in ("prompt_hash", "doc_hash", "target_hash")).encode()
        ).hexdigest(),
        score=float(score),
        loglikelihoods=likelihoods,
        response=generated if options.keep_responses else None,
    )


def _likelihood(answer: Any) -> float:
    """lm-eval answers with (log-likelihood, whether greedy decoding gives it), or with the log-likelihood of a text."""
    return float(answer[0] if isinstance(answer, tuple | list) else answer)


def _exchange(sample: dict[str, Any]) -> Exchange:
    doc = sample["doc"]
    return Exchange(
        prompt=doc.get("behavior", doc["prompt"]), context=doc.get("context", ""), answer=str(sample["resps"][0][0])
    )


def _chance(metric: str, samples: Sequence[dict[str, Any]]) -> float | None:
    """Expected accuracy of a guess: the mean of 1 / (number of choices); None for a task without choices."""
    choices = [len(sample["filtered_resps"]) for sample in samples]
    if metric not in ("acc", "acc_norm", "acc_bytes") or min(choices) < 2:
        return None
    return math.fsum(1 / count for count in choices) / len(choices)
