from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltamend.errors import EvaluationError, OutputError, UsageError
from deltamend.evaluation.backend import BackendOptions, open_backend
from deltamend.evaluation.lm_eval_tasks import TaskLoader
from deltamend.evaluation.one_benchmark import AskOptions, ask_benchmark
from deltamend.evaluation.record import Evaluation, TaskScores, read_evaluation
from deltamend.evaluation.rubrics import Exchange
from deltamend.evaluation.run import EvaluationRun, run_benchmarks
from deltamend.evaluation.suite import Suite, SuiteTask, suite_of_tasks
from deltamend.evaluation.third_party_output import third_parties_quiet
from tests.evaluation.conftest import ARC, XSTEST, write_items

ARC_EASY = SuiteTask(name="arc", task="arc_easy", file="arc_easy.jsonl", metric="acc")
MMLU = SuiteTask(name="mmlu", task="mmlu", file="mmlu.jsonl", fewshot_file="mmlu_dev.jsonl", fewshot=1)
SAFE = SuiteTask(name="safe", task="xstest_safe", file="xstest.jsonl", chat=True, max_tokens=4)
UNSAFE = SuiteTask(name="unsafe", task="xstest_unsafe", file="xstest.jsonl", chat=True, max_tokens=4)


def suite_of(items: Path, *tasks: SuiteTask) -> list[Suite]:
    return [Suite(name="test", version="1", tasks=tasks, folders=(items,))]


@pytest.fixture
def run(tiny_model: Path, items: Path, tmp_path: Path) -> Callable[..., EvaluationRun]:
    """Evaluate the tiny model on the CPU."""

    def ask(*tasks: SuiteTask, model: Path = tiny_model, out: str = "out.json", **more: Any) -> EvaluationRun:
        backend = more.pop("backend", BackendOptions(device="cpu"))
        return run_benchmarks(str(model), suite_of(items, *tasks), tmp_path / out, backend=backend, **more)

    return ask


@pytest.fixture(scope="module")
def whole(tiny_model: Path, items: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The tiny model on a suite of all kinds, read back from the packed record."""
    out = tmp_path_factory.mktemp("whole") / "out.json.gz"
    made = run_benchmarks(
        str(tiny_model),
        suite_of(items, ARC_EASY, MMLU, SAFE, UNSAFE),
        out,
        backend=BackendOptions(device="cpu"),
    )
    assert read_evaluation(out) == made.evaluation
    return made.evaluation


def loaded_model(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """log P(continuation | context) by one forward pass, nothing of lm-eval's."""
    start = len(tokenizer(context).input_ids)
    tokens = tokenizer(context + continuation, return_tensors="pt").input_ids
    with torch.no_grad():
        log_probs = torch.log_softmax(model(tokens).logits[0, :-1].float(), dim=-1)
    return float(log_probs[start - 1 :].gather(1, tokens[0, start:, None]).sum())


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


def test_the_record_says_what_its_figures_depend_on(whole: Evaluation, tiny_model: Path) -> None:
    assert whole.model == str(tiny_model)
    assert whole.model_hash is not None
    assert whole.template_hash is not None
    assert whole.versions["lm_eval"]
    assert whole.settings == {"backend": "hf", "device": "cpu", "dtype": "auto", "judge": "refusal-strings"}
    arc, mmlu = whole.tasks["arc"], whole.tasks["mmlu"]
    assert (arc.metric, arc.version, arc.fewshot) == ("acc", "1.0", 0)
    assert arc.chance == pytest.approx(1 / 3)
    assert (mmlu.fewshot, mmlu.chance) == (1, 0.25)
    assert mmlu.items[0].id == "mmlu_anatomy/anatomy/0"
    assert len({item.prompt_hash for item in mmlu.items}) == len(mmlu.items)


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


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batches_change_no_score(
    run: Callable[..., EvaluationRun], whole: Evaluation, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamend.evaluation.backend._SLICES", 3)
    record = run(ARC_EASY, MMLU, backend=BackendOptions(device="cpu", batch_size=batch_size)).evaluation
    for name in ("arc", "mmlu"):
        for item, other in zip(record.tasks[name].items, whole.tasks[name].items, strict=True):
            assert item.loglikelihoods == pytest.approx(other.loglikelihoods, abs=1e-3)
            assert (item.id, item.prompt_hash) == (other.id, other.prompt_hash)


def test_logits_are_made_where_answers_are_and_not_over_their_prompts(tiny_model: Path, items: Path) -> None:
    made: list[int] = []
    read: list[int] = []
    with third_parties_quiet():
        lm = open_backend(str(tiny_model), BackendOptions(device="cpu"), lambda _share: None)
        lm.model.lm_head.register_forward_hook(lambda _module, _inputs, logits: made.append(logits.shape[1]))
        lm.model.model.register_forward_hook(lambda _module, _inputs, states: read.append(states[0].shape[1]))
        ask_benchmark(lm, TaskLoader().load(ARC_EASY, (items,)), AskOptions())
    assert 0 < sum(made) < sum(read) / 2


def test_a_limit_spreads_over_the_items_and_over_the_members_of_a_group(run: Callable[..., EvaluationRun]) -> None:
    record = run(ARC_EASY, MMLU, asking=AskOptions(limit=3)).evaluation
    assert [item.id for item in record.tasks["arc"].items] == ["q0", "q3", "q6"]
    assert [item.id.partition("/")[0] for item in record.tasks["mmlu"].items] == [
        "mmlu_anatomy",
        "mmlu_anatomy",
        "mmlu_astronomy",
    ]
    assert record.limit == 3


def test_an_interrupted_run_goes_on_where_it_stopped(
    run: Callable[..., EvaluationRun], whole: Evaluation, tmp_path: Path
) -> None:
    def interrupt(name: str, _share: float) -> None:
        if name == "safe":
            raise KeyboardInterrupt

    tasks = (ARC_EASY, MMLU, SAFE, UNSAFE)
    with pytest.raises(KeyboardInterrupt):
        run(*tasks, progress=interrupt)
    assert not (tmp_path / "out.json").exists()
    asked: list[str] = []
    resumed = run(*tasks, resume=True, progress=lambda name, _share: asked.append(name))
    assert resumed.kept == ("arc", "mmlu")
    assert "arc" not in asked
    assert resumed.evaluation == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize("change", ["limit", "seed", "dtype", "items", "model"])
def test_what_was_finished_under_other_conditions_is_asked_again(tiny_model: Path, tmp_path: Path, change: str) -> None:
    path = write_items(tmp_path / "mine.jsonl", ARC[:2])
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)

    def go(*, stop: bool, **changed: Any) -> EvaluationRun:
        def progress(name: str, _share: float) -> None:
            if stop and name == "other":
                raise KeyboardInterrupt

        other = write_items(tmp_path / "other.jsonl", ARC[2:4])
        return run_benchmarks(
            str(model),
            [suite_of_tasks([str(path), str(other)])],
            tmp_path / "out.json",
            backend=BackendOptions(device="cpu", dtype=changed.get("dtype", "auto")),
            asking=AskOptions(limit=changed.get("limit"), seed=changed.get("seed", 0)),
            resume=not stop,
            progress=progress,
        )

    with pytest.raises(KeyboardInterrupt):
        go(stop=True)
    if change == "items":
        write_items(path, ARC[1:3])
    if change == "model":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    others: dict[str, dict[str, Any]] = {"limit": {"limit": 1}, "seed": {"seed": 1}, "dtype": {"dtype": "float32"}}
    changed = others.get(change, {})
    assert go(stop=False, **changed).kept == ()


def test_a_record_that_is_there_is_not_replaced_unless_asked(run: Callable[..., EvaluationRun], tmp_path: Path) -> None:
    run(ARC_EASY)
    before = (tmp_path / "out.json").read_bytes()
    with pytest.raises(OutputError, match="already exists; give another name, or overwrite=True"):
        run(ARC_EASY)
    assert not run(ARC_EASY, resume=True).written
    with pytest.raises(OutputError, match="of another run"):
        run(ARC_EASY, resume=True, asking=AskOptions(limit=2))
    assert (tmp_path / "out.json").read_bytes() == before
    assert run(ARC_EASY, overwrite=True, asking=AskOptions(limit=2)).evaluation.limit == 2


def test_a_users_own_files_of_all_three_kinds_are_asked(tiny_model: Path, tmp_path: Path) -> None:
    choice = write_items(tmp_path / "choice.jsonl", ARC[:3])
    exact = write_items(
        tmp_path / "exact.jsonl", [{"question": "Say b.", "answer": "b"}, {"question": "?", "answer": ""}]
    )
    text = write_items(tmp_path / "text.jsonl", [{"text": "hello world"}, {"text": "é" * 40}])
    suites = [suite_of_tasks([str(path) for path in (choice, exact, text)])]
    tasks = run_benchmarks(
        str(tiny_model), suites, tmp_path / "out.json", backend=BackendOptions(device="cpu")
    ).evaluation.tasks
    assert [tasks[name].metric for name in tasks] == ["acc_norm", "exact_match", "log2_prob_per_byte"]
    model, tokenizer = loaded_model(tiny_model)
    # lm-eval rolls over a text from the beginning-of-text token on, and so predicts every byte of it.
    expected = log_likelihood(model, tokenizer, tokenizer.bos_token, "hello world")
    assert list(tasks["text"].items[0].loglikelihoods) == pytest.approx([expected], abs=1e-4)
    assert tasks["text"].items[0].score == pytest.approx(expected / 11 / math.log(2), abs=1e-5)
    assert tasks["text"].chance is None


def test_the_likelihood_of_an_answer_is_asked_without_generating_it(tiny_model: Path, tmp_path: Path) -> None:
    items = write_items(tmp_path / "items.jsonl", [{"question": "a b", "answers": ["c d", "e"]}] * 1)
    task = SuiteTask(name="likely", file=str(items), metric="prob_per_byte")
    suite = Suite(name="own", version="1", tasks=(task,))
    found = run_benchmarks(str(tiny_model), [suite], tmp_path / "out.json", backend=BackendOptions(device="cpu"))
    model, tokenizer = loaded_model(tiny_model)
    expected = log_likelihood(model, tokenizer, "a b", "c d")
    (item,) = found.evaluation.tasks["likely"].items
    assert item.score == pytest.approx(math.exp(expected / 3), abs=1e-5)
    assert list(item.loglikelihoods) == pytest.approx([expected], abs=1e-4)


def test_the_templates_line_break_before_an_answer_is_given_and_not_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    items = write_items(tmp_path / "items.jsonl", [{"question": "a b", "answers": ["c"]}])
    task = SuiteTask(name="likely", file=str(items), metric="prob_per_byte", chat=True)
    suite = Suite(name="own", version="1", tasks=(task,))
    found = run_benchmarks(str(tiny_model), [suite], tmp_path / "out.json", backend=BackendOptions(device="cpu"))
    model, tokenizer = loaded_model(tiny_model)
    messages = [{"role": "user", "content": "a b"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("\n")
    expected = log_likelihood(model, tokenizer, prompt, "c")
    assert list(found.evaluation.tasks["likely"].items[0].loglikelihoods) == pytest.approx([expected], abs=1e-4)


def test_a_suite_can_ask_fewer_items_of_one_benchmark(run: Callable[..., EvaluationRun]) -> None:
    fewer = ARC_EASY.model_copy(update={"limit": 2})
    assert len(run(fewer).evaluation.tasks["arc"].items) == 2
    lower = run(fewer, overwrite=True, asking=AskOptions(limit=1))
    assert len(lower.evaluation.tasks["arc"].items) == 1


def test_a_model_without_a_template_is_asked_plainly(
    tiny_model: Path, tmp_path: Path, run: Callable[..., EvaluationRun]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    (bare / "chat_template.jinja").unlink()
    made = run(SAFE, ARC_EASY, model=bare)
    assert (made.evaluation.template_hash, made.without_template) == (None, ("safe",))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (ARC_EASY.model_copy(update={"metric": "bleu"}), "arc: no metric 'bleu'; the task has acc, acc_norm"),
        (ARC_EASY.model_copy(update={"filter": "strict"}), "arc: no answer filter 'strict'; the task has none"),
        (ARC_EASY.model_copy(update={"file": "gone.jsonl"}), "gone.jsonl: no such file"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(
    run: Callable[..., EvaluationRun], task: SuiteTask, message: str
) -> None:
    with pytest.raises(EvaluationError) as caught:
        run(task)
    assert message in str(caught.value)


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


def test_python_that_comes_with_a_checkpoint_does_not_run(
    tiny_model: Path, tmp_path: Path, run: Callable[..., EvaluationRun]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "evil.py").write_text("raise SystemExit('remote code must never run')\n")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(EvaluationError, match="hf cannot load it"):
        run(ARC_EASY, model=model)


def test_models_and_backends_that_are_not_there_are_named(run: Callable[..., EvaluationRun], tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"gone: no such folder"):
        run(ARC_EASY, model=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="no weight files"):
        run(ARC_EASY, model=tmp_path / "empty")
    with pytest.raises(UsageError, match="backend: lm-eval cannot open 'nonsense'"):
        run(ARC_EASY, backend=BackendOptions(name="nonsense"))
    with pytest.raises(UsageError, match="limit: 0 items are none to ask; give 1 or more"):
        AskOptions(limit=0)


def test_a_secret_given_to_a_backend_is_not_written_down(run: Callable[..., EvaluationRun], tmp_path: Path) -> None:
    run(ARC_EASY, backend=BackendOptions(device="cpu", arguments={"token": "hf_secret", "max_length": 256}))
    text = (tmp_path / "out.json").read_text()
    assert "hf_secret" not in text
    assert json.loads(text)["settings"]["backend.max_length"] == "256"


def test_an_argument_that_a_backend_does_not_take_is_said_in_one_line(run: Callable[..., EvaluationRun]) -> None:
    with pytest.raises(EvaluationError, match=r"hf cannot load it \(.*unexpected keyword argument 'speed'\)$"):
        run(ARC_EASY, backend=BackendOptions(device="cpu", arguments={"speed": 1}))


@pytest.mark.slow
def test_another_backend_of_lm_eval_runs_by_its_name(run: Callable[..., EvaluationRun]) -> None:
    """lm-eval's `dummy` answers at random; it shows that a backend without a tokenizer goes through whole."""
    scores = run(ARC_EASY, backend=BackendOptions(name="dummy")).evaluation.tasks["arc"]
    assert isinstance(scores, TaskScores)
    assert len(scores.items) == len(ARC)
