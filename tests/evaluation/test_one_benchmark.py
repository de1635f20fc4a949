from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from deltamend.errors import EvaluationError
from deltamend.evaluation.backend import BackendOptions
from deltamend.evaluation.lm_eval_tasks import TaskLoader
from deltamend.evaluation.one_benchmark import AskOptions
from deltamend.evaluation.record import Evaluation
from deltamend.evaluation.rubrics import Exchange
from deltamend.evaluation.run import EvaluationRun
from deltamend.evaluation.third_party_output import third_parties_quiet
from tests.evaluation.conftest import ARC, XSTEST
from tests.evaluation.tiny_suite import ARC_EASY, MMLU, SAFE, UNSAFE, loaded_model, log_likelihood


def test_the_log_likelihoods_are_those_of_a_plain_loop(whole: Evaluation, tiny_model: Path) -> None:
    model, tokenizer = loaded_model(tiny_model)
    for item, score in zip(ARC, whole.tasks["arc"].items, strict=True):
        context, choices = f"Question: {item['question']}\nAnswer:", cast("list[str]", item["choices"])
        by_hand = [log_likelihood(model, tokenizer, context, f" {choice}") for choice in choices]
        assert score.id == item["id"]
        assert score.loglikelihoods == pytest.approx(by_hand, abs=1e-4)
        assert score.score == float(np.argmax(by_hand) == item["gold"])


def test_the_figures_are_those_of_lm_eval_called_by_hand(whole: Evaluation, tiny_model: Path, items: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with third_parties_quiet():
        lm = HFLM(pretrained=str(tiny_model), device="cpu", batch_size=3, softmax_dtype="float32")
        loader = TaskLoader()
        for entry, metric in ((ARC_EASY, "acc,none"), (SAFE, "complied,none"), (UNSAFE, "refused,none")):
            tasks = list(loader.load(entry, (items,)).members.values())
            by_hand = simple_evaluate(
                lm,
                tasks=tasks,
                apply_chat_template=entry.chat,
                bootstrap_iters=0,
                task_manager=TaskManager(include_defaults=False),
            )
            assert whole.tasks[entry.name].mean == by_hand["results"][str(entry.task)][metric]


def test_a_figure_of_refusal_strings_is_labelled_weak_and_no_answer_is_kept(whole: Evaluation) -> None:
    safe, unsafe = whole.tasks["safe"], whole.tasks["unsafe"]
    assert (len(safe.items), safe.metric, len(unsafe.items), unsafe.metric) == (3, "complied", 2, "refused")
    assert safe.weak is not None
    assert whole.tasks["arc"].weak is None
    assert all(item.response is None for task in whole.tasks.values() for item in task.items)


def test_answers_are_kept_where_that_is_asked(run: Callable[..., EvaluationRun]) -> None:
    record = run(SAFE, asking=AskOptions(keep_responses=True)).evaluation
    assert all(item.response is not None for item in record.tasks["safe"].items)


@dataclass(frozen=True)
class Fixed:
    """A judge that remembers what it was shown and gives every answer the same score."""

    seen: list[Exchange]
    name: str = "fixed"
    weak: str | None = None
    answer_tokens: int = 3

    def metric(self, task: str) -> str:
        return f"fixed {task}"

    def scores(self, task: str, exchanges: Sequence[Exchange]) -> list[float]:  # noqa: ARG002 - the protocol's
        self.seen.extend(exchanges)
        return [0.25] * len(exchanges)


def test_another_judge_scores_the_same_answers(run: Callable[..., EvaluationRun]) -> None:
    judge = Fixed([])
    scores = run(SAFE, asking=AskOptions(judge=judge)).evaluation.tasks["safe"]
    assert (scores.metric, scores.weak, scores.mean) == ("fixed xstest_safe", None, 0.25)
    assert [exchange.prompt for exchange in judge.seen] == [item["prompt"] for item in XSTEST[:3]]


def test_a_limit_spreads_over_the_items_and_over_the_members_of_a_group(run: Callable[..., EvaluationRun]) -> None:
    record = run(ARC_EASY, MMLU, asking=AskOptions(limit=3)).evaluation
    assert [item.id for item in record.tasks["arc"].items] == ["q0", "q3", "q6"]
    assert [item.id.partition("/")[0] for item in record.tasks["mmlu"].items] == [
        "mmlu_anatomy",
        "mmlu_anatomy",
        "mmlu_astronomy",
    ]
    assert record.limit == 3


def test_a_model_that_answers_nan_is_refused(
    tiny_model: Path, tmp_path: Path, run: Callable[..., EvaluationRun]
) -> None:
    model, tokenizer = loaded_model(tiny_model)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    model.save_pretrained(tmp_path / "nan")
    tokenizer.save_pretrained(tmp_path / "nan")
    with pytest.raises(EvaluationError, match="arc: item q0: a log-likelihood is not finite"):
        run(ARC_EASY, model=tmp_path / "nan")
    assert not (tmp_path / "out.json").exists()


def test_a_figure_of_prompts_that_were_cut_says_so(run: Callable[..., EvaluationRun]) -> None:
    short = BackendOptions(device="cpu", arguments={"max_length": 20})
    assert run(ARC_EASY, backend=short).evaluation.tasks["arc"].weak == (
        "prompts longer than the model's context were cut from the left"
    )


def test_what_fails_inside_lm_eval_is_one_line(run: Callable[..., EvaluationRun]) -> None:
    short = BackendOptions(device="cpu", arguments={"max_length": 3})
    with pytest.raises(EvaluationError, match=r'^safe: lm-eval failed \(.*\); leave it out with skip="safe"$'):
        run(SAFE, backend=short)


def test_a_suite_can_ask_fewer_items_of_one_benchmark(run: Callable[..., EvaluationRun]) -> None:
    fewer = ARC_EASY.model_copy(update={"limit": 2})
    assert len(run(fewer).evaluation.tasks["arc"].items) == 2
    lower = run(fewer, overwrite=True, asking=AskOptions(limit=1))
    assert len(lower.evaluation.tasks["arc"].items) == 1
