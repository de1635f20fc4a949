from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deltamend.errors import EvaluationError
from deltamend.evaluation.backend import BackendOptions, open_backend
from deltamend.evaluation.lm_eval_tasks import TaskLoader
from deltamend.evaluation.one_benchmark import AskOptions, ask_benchmark
from deltamend.evaluation.record import Evaluation, TaskScores
from deltamend.evaluation.run import EvaluationRun, run_benchmarks
from deltamend.evaluation.suite import Suite, SuiteTask
from deltamend.evaluation.third_party_output import third_parties_quiet
from tests.evaluation.conftest import ARC, write_items
from tests.evaluation.tiny_suite import ARC_EASY, MMLU, loaded_model, log_likelihood


@pytest.mark.slow
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


@pytest.mark.slow
def test_logits_are_made_where_answers_are_and_not_over_their_prompts(tiny_model: Path, items: Path) -> None:
    made: list[int] = []
    read: list[int] = []
    with third_parties_quiet():
        lm = open_backend(str(tiny_model), BackendOptions(device="cpu"), lambda _share: None)
        lm.model.lm_head.register_forward_hook(lambda _module, _inputs, logits: made.append(logits.shape[1]))
        lm.model.model.register_forward_hook(lambda _module, _inputs, states: read.append(states[0].shape[1]))
        ask_benchmark(lm, TaskLoader().load(ARC_EASY, (items,)), AskOptions())
    assert 0 < sum(made) < sum(read) / 2


@pytest.mark.slow
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


def test_an_argument_that_a_backend_does_not_take_is_said_in_one_line(run: Callable[..., EvaluationRun]) -> None:
    with pytest.raises(EvaluationError, match=r"hf cannot load it \(.*unexpected keyword argument 'speed'\)$"):
        run(ARC_EASY, backend=BackendOptions(device="cpu", arguments={"speed": 1}))


@pytest.mark.slow
def test_another_backend_of_lm_eval_runs_by_its_name(run: Callable[..., EvaluationRun]) -> None:
    """lm-eval's `dummy` answers at random; it shows that a backend without a tokenizer goes through whole."""
    scores = run(ARC_EASY, backend=BackendOptions(name="dummy")).evaluation.tasks["arc"]
    assert isinstance(scores, TaskScores)
    assert len(scores.items) == len(ARC)


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
