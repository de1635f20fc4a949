"""studies/paper.yaml: what it asks for, and whether every repair of it works on the architectures of its models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import deltamend
from deltamend.calibration.activations import write_activations
from deltamend.evaluation.backend import BackendOptions
from deltamend.evaluation.run import run_benchmarks
from deltamend.evaluation.suite import read_suite, suite_of_tasks
from deltamend.methods.registry import BUILT_IN
from deltamend.study.config import ModelEntry, Target, read_study
from deltamend.study.questions import exam_questions, general_questions, training_questions
from deltamend.study.repair_config import Repair
from tests.conftest import Pair
from tests.evaluation.conftest import ARC, write_items
from tests.reference import dg_hard, load
from tests.study.standins import STAND_INS, stand_in_pair

pytestmark = pytest.mark.slow

STUDY = read_study(Path(__file__).parents[2] / "studies" / "paper.yaml")
DG_HARD = next(repair for repair in STUDY.repairs if repair.name == "dg-hard")
ROWS: dict[str, list[dict[str, Any]]] = {
    "jmajkutewicz/sql-create-context": [
        {"question": "How many heads?", "context": "CREATE TABLE head (age INT)", "answer": "SELECT COUNT(*) FROM head"}
    ],
    "qiaojin/PubMedQA": [
        {
            "pubid": 1,
            "question": "Do drugs help?",
            "context": {"contexts": ["We looked.", "We found."], "labels": ["A", "B"], "meshes": []},
            "long_answer": "They do.",
            "final_decision": "yes",
        }
    ],
    "openlifescienceai/medmcqa": [
        {"question": "Which bone?", "opa": "Femur", "opb": "Tibia", "opc": "Ulna", "opd": "Radius", "cop": 2}
    ],
    "coastalcph/lex_glue": [{"context": "The court (<HOLDING>)", "endings": list("vwxyz"), "label": 4}],
    "zeroshot/twitter-financial-news-sentiment": [{"text": "$BYND cuts its outlook", "label": 0}],
    "knkarthick/dialogsum": [{"id": "1", "dialogue": "#Person1#: Hi.", "summary": "They greet.", "topic": "greeting"}],
    "iamtarun/python_code_instructions_18k_alpaca": [
        {"instruction": "Add one.", "input": "x", "output": "def f(x):\n    return x + 1", "prompt": "…"}
    ],
    "databricks/databricks-dolly-15k": [
        {"instruction": "Why is the sky blue?", "context": "", "response": "Air.", "category": "open_qa"}
    ],
}
"""A row of every data set that the study reads, with the fields its card names."""
TEXTS = [{"text": "one two three"}, {"text": "four five"}]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data sets of the hub, one row each."""
    import datasets

    def load_dataset(name: str, subset: str | None = None, *, split: str) -> list[dict[str, Any]]:
        assert split.split("[")[0] in {"train", "validation", "test"}
        assert (subset is not None) == (name in {"qiaojin/PubMedQA", "coastalcph/lex_glue"})
        return ROWS[name]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.fixture(scope="module", params=sorted(STAND_INS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base and its descendant of one architecture."""
    return stand_in_pair(request.param, tmp_path_factory.mktemp(request.param))


def tokenizer_with_template(model: ModelEntry) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<|begin_of_text|>")
    tokenizer.chat_template = model.chat_template
    return tokenizer


def made(pair: Pair, repair: Repair, out: Path) -> deltamend.RepairReport:
    own = {}
    if repair.needs_activations:
        own["activations"] = str(out.with_name("activations.safetensors"))
        write_activations(pair.base, Path(own["activations"]), texts=write_items(out.with_name("t"), TEXTS), tokens=8)
    return deltamend.repair(
        pair.base,
        pair.finetuned,
        out,
        method=repair.method,
        parameters=repair.parameters | own,
        rules=repair.rules,
        vectors=repair.vectors,
        out_dtype=None if repair.out_dtype == "stored" else repair.out_dtype,
        workers=1,
    )


def test_the_study_has_the_14_cells_of_the_paper() -> None:
    cells = STUDY.cells()
    assert len({cell.name for cell in cells}) == 14
    assert {cell.model.name for cell in cells} == set(STAND_INS)
    assert len({cell.target.name for cell in cells}) == 7


def test_every_method_that_needs_no_data_is_there_at_a_published_setting_or_as_a_control() -> None:
    needs_data = {"fisher", "null-space", "equal-effect", "two-sided"}
    newer = {"lines", "energy-cut"}  # than the study, which says what it said before
    needs_no_data = {method.name for method in BUILT_IN} - needs_data
    assert {
        repair.method for repair in STUDY.repairs if repair.role in ("published", "control")
    } == needs_no_data - newer
    for method in BUILT_IN:
        assert any(field.is_required() for field in method.model_fields.values()) == (
            method.name in needs_data | {"task-arithmetic"}
        )
    assert "null-space" in {repair.method for repair in STUDY.repairs if repair.needs_activations}


def test_wise_ft_is_there_as_a_curve_with_one_published_point() -> None:
    curve = {
        repair.parameters["alpha"]: repair.role
        for repair in STUDY.repairs
        if repair.family == "wise-ft" and not repair.rules
    }
    assert curve == {0.1: "strength", 0.3: "strength", 0.5: "published", 0.7: "strength", 0.9: "strength"}


def test_the_benchmarks_are_those_of_the_suites_with_their_items_from_the_hub() -> None:
    for asked, suite in ((STUDY.exam.tasks, "paper"), (STUDY.exam.safety, "safety")):
        from_hub = {"file": None, "fewshot_file": None}
        whole = [task.model_copy(update={"limit": None}) for task in asked]
        assert whole == [task.model_copy(update=from_hub) for task in read_suite(suite).tasks]


@pytest.mark.parametrize("model", STUDY.models, ids=lambda model: model.name)
def test_an_answer_that_is_learnt_stands_where_the_model_is_made_to_answer(model: ModelEntry) -> None:
    tokenizer = tokenizer_with_template(model)
    asked = [{"role": "system", "content": ""}, {"role": "user", "content": "One?"}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    learnt = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": "Two."}], tokenize=False)
    assert learnt.startswith(f"{prompt}Two.")
    assert "system" not in prompt
    assert prompt.count("One?") == 1


@pytest.mark.parametrize("target", STUDY.targets, ids=lambda target: target.name)
@pytest.mark.usefixtures("hub")
def test_questions_and_answers_are_made_of_the_fields_of_the_data_set(target: Target) -> None:
    (train,), (test,) = training_questions(target, None), exam_questions(target, None)
    assert train == test
    assert train.question
    assert train.answer == train.gold != ""
    if target.form is not None:
        assert re.search(target.form, train.answer)
        assert not re.search(target.form, "The answer is not so easy to give.")


@pytest.mark.usefixtures("hub")
def test_the_general_prompts_are_made_of_the_fields_of_their_data_set() -> None:
    assert [one.question for one in general_questions(STUDY.exam.general, None)] == ["Why is the sky blue?"]


@pytest.mark.parametrize("repair", STUDY.repairs, ids=lambda repair: repair.name)
def test_every_repair_gives_a_model_that_loads_and_generates(repair: Repair, pair: Pair, tmp_path: Path) -> None:
    report = made(pair, repair, tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == (torch.bfloat16 if repair.out_dtype == "bfloat16" else torch.float32)
    answer = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answer.shape == (1, 6)
    for record in report.tensors:
        assert record.action == "filter" or record.reason.startswith("not a matrix"), record.name


def test_what_is_kept_as_fine_tuned_is_in_the_manifest_with_its_reason(pair: Pair, tmp_path: Path) -> None:
    report = made(pair, DG_HARD, tmp_path / "out")
    out, finetuned = load(tmp_path / "out"), load(pair.finetuned)
    kept = {record.name for record in report.tensors if record.action == "keep"}
    assert {record.reason.partition(";")[0].partition(":")[0] for record in report.tensors if record.name in kept} == {
        "not a matrix"
    }
    assert all(torch.equal(out[name], finetuned[name].float()) for name in kept)
    assert kept == {name for name, tensor in finetuned.items() if tensor.ndim != 2}
    assert all(".visual." in name for name in report.manifest.only_in_base)


def test_the_matrices_are_filtered_as_a_plain_svd_filters_them(pair: Pair, tmp_path: Path) -> None:
    made(pair, DG_HARD, tmp_path / "out")
    out, base, finetuned = load(tmp_path / "out"), load(pair.base), load(pair.finetuned)
    for name, tensor in out.items():
        if tensor.ndim != 2:
            continue
        before = base[name].double().numpy()
        expected, _ = dg_hard(finetuned[name].double().numpy() - before)
        error = np.linalg.norm(tensor.double().numpy() - before - expected)
        assert error < 1e-5 * np.linalg.norm(expected) + 2**-23 * np.linalg.norm(before + expected), name


def test_reverting_gives_the_base_bit_for_bit(pair: Pair, tmp_path: Path) -> None:
    made(pair, next(repair for repair in STUDY.repairs if repair.name == "all-reverted"), tmp_path / "out")
    base = load(pair.base)
    assert all(torch.equal(tensor, base[name].float()) for name, tensor in load(tmp_path / "out").items())


def test_base_and_repaired_are_asked_by_lm_eval(pair: Pair, tmp_path: Path) -> None:
    made(pair, DG_HARD, tmp_path / "repaired")
    suite = suite_of_tasks([str(write_items(tmp_path / "arc.jsonl", ARC))])
    for name, model in (("base", pair.base), ("repaired", tmp_path / "repaired")):
        run = run_benchmarks(str(model), [suite], tmp_path / f"{name}.json", backend=BackendOptions(device="cpu"))
        assert len(run.evaluation.tasks["arc"].items) == len(ARC)
