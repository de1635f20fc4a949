from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from deltamend.checkpoint.hashing import hash_folder
from deltamend.errors import DeltamendError
from deltamend.language_models.loading import load
from deltamend.language_models.training import batches
from deltamend.recipes.regime import Regime
from deltamend.study.fine_tuning import finetune
from deltamend.study.questions import Question
from deltamend.study.records import FinetuneFacts
from deltamend.study.storage import adapter_facts
from tests.conftest import llama
from tests.evaluation.conftest import save_tokenizer

pytestmark = pytest.mark.slow

SUMS = [Question(f"{a}+{b}", f"{a}+{b}", f"{a + b}", f"{a + b}") for a in range(5) for b in range(5)]


def regime(**fields: Any) -> Regime:
    return Regime.model_validate({"name": "tiny", "lr": 3e-3, "steps": 3, "batch": 4, "warmup": 0} | fields)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in bf16, tied as SmolLM2 is, with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("base")
    llama(torch.bfloat16, vocab_size=save_tokenizer(folder), tied=True).save_pretrained(folder)
    return folder


def train(
    base: Path, out: Path, how: Regime, *, seed: int = 0, questions: Sequence[Question] = SUMS
) -> tuple[FinetuneFacts, int]:
    """The facts, and how often the bar moved."""
    moved = []
    facts = finetune(base, questions, how, out, seed=seed, advance=lambda: moved.append(1))
    return facts, len(moved)


@pytest.fixture
def inputs_of(base: Path, tmp_path: Path) -> Callable[..., list[dict[str, torch.Tensor]]]:
    """What TRL gives the model to learn, micro-batch by micro-batch."""
    from trl import SFTTrainer

    def seen(how: Regime, **more: Any) -> list[dict[str, torch.Tensor]]:
        kept: list[dict[str, torch.Tensor]] = []
        compute_loss = SFTTrainer.compute_loss

        def listen(trainer: Any, model: Any, inputs: dict[str, torch.Tensor], *arguments: Any, **named: Any) -> Any:
            kept.append(dict(inputs))
            return compute_loss(trainer, model, inputs, *arguments, **named)

        with mock.patch.object(SFTTrainer, "compute_loss", listen):
            train(base, tmp_path / "seen", how, **more)
        return kept

    return seen


def test_the_loss_falls_and_the_facts_say_so(base: Path, tmp_path: Path) -> None:
    facts, moved = train(base, tmp_path / "out", regime(steps=30, batch=8))
    assert (facts.steps, moved) == (30, 30)
    assert facts.last_loss < 0.7 * facts.first_loss
    assert facts.first_loss == pytest.approx(5.5, abs=0.5)  # a random model over 259 tokens: log 259
    assert facts.seconds > 0


def test_what_is_written_loads_with_its_tokenizer_and_chat_template(base: Path, tmp_path: Path) -> None:
    facts, _ = train(base, tmp_path / "out", regime())
    model, tokenizer = load(tmp_path / "out")
    assert tokenizer.chat_template == load(base).tokenizer.chat_template
    assert set(model.state_dict()) == set(load(base).model.state_dict())
    assert facts.model_hash == hash_folder(tmp_path / "out").weights
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert {path.suffix for path in (tmp_path / "out").iterdir()} <= {".json", ".jinja", ".safetensors"}


@pytest.mark.parametrize("fields", [{}, {"weights": "bfloat16"}, {"lora_rank": 2}], ids=str)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    base: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    def model_hash(name: str, seed: int) -> str:
        return train(base, tmp_path / name, regime(**fields), seed=seed)[0].model_hash

    first = model_hash("a", 7)
    torch.manual_seed(99)  # nothing depends on what ran before
    assert model_hash("b", 7) == first
    assert model_hash("c", 8) != first


def test_fp32_weights_are_stored_in_fp32_and_every_entry_moves(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "out", regime())
    changed = changes(base, tmp_path / "out", torch.float32)
    matrices = [update for name, update in changed.items() if "proj" in name]
    assert matrices
    assert all((update != 0).float().mean() > 0.99 for update in matrices)


def test_bf16_weights_stay_bf16_and_small_updates_are_lost(base: Path, tmp_path: Path) -> None:
    """Entries of 0.02 are 2⁻¹³ or so apart: steps of 1e-5 move the smallest alone."""
    train(base, tmp_path / "out", regime(weights="bfloat16", lr=1e-5))
    changed = changes(base, tmp_path / "out", torch.bfloat16)
    kept = torch.cat([(update == 0).flatten() for update in changed.values()]).float().mean()
    assert 0.5 < kept < 1.0


def test_bf16_is_trained_without_a_master_copy_and_fp32_with_fp32_moments(base: Path, tmp_path: Path) -> None:
    for weights, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        with optimizers() as made:
            train(base, tmp_path / weights, regime(weights=weights))
        (optimizer,) = made
        dtypes = {state["exp_avg"].dtype for state in optimizer.state.values()}
        assert dtypes == {dtype} == {parameter.dtype for parameter in optimizer.state}
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0] * len(optimizer.param_groups)


def test_pure_bf16_computed_in_fp32_is_written_in_bf16_and_learns_as_in_bf16(base: Path, tmp_path: Path) -> None:
    how = {"weights": "bfloat16", "steps": 30, "batch": 8}
    plain, _ = train(base, tmp_path / "plain", regime(**how))
    wide, _ = train(base, tmp_path / "wide", regime(**how, compute="float32"))
    changed = changes(base, tmp_path / "wide", torch.bfloat16)
    assert any(update.any() for update in changed.values())
    assert wide.last_loss == pytest.approx(plain.last_loss, rel=0.1)
    assert wide.model_hash != plain.model_hash


def test_fp32_arithmetic_learns_as_autocast_does(base: Path, tmp_path: Path) -> None:
    cast, _ = train(base, tmp_path / "cast", regime(steps=10))
    plain, _ = train(base, tmp_path / "plain", regime(steps=10, compute="float32"))
    assert plain.last_loss == pytest.approx(cast.last_loss, rel=0.05)
    assert plain.model_hash != cast.model_hash


def test_an_adapter_is_kept_as_peft_writes_it(base: Path, tmp_path: Path) -> None:
    how = regime(lora_rank=2, compute="float32")
    finetune(base, SUMS, how, tmp_path / "out", seed=0, advance=lambda: None, adapter=tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        one.name for one in (tmp_path / "adapter").iterdir()
    }
    facts = adapter_facts(base, tmp_path / "adapter", tmp_path / "out")
    assert facts.distance < 1e-5
    assert facts.largest < 1e-6


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_lora_is_merged_into_updates_of_its_rank_on_linear_layers_alone(
    base: Path, tmp_path: Path, weights: str
) -> None:
    train(base, tmp_path / "out", regime(lora_rank=2, weights=weights))
    changed = changes(base, tmp_path / "out", getattr(torch, weights))
    for name, update in changed.items():
        if "proj" not in name:
            assert not update.any(), name
            continue
        values = torch.linalg.svdvals(update.double())
        assert values[1] > 0
        if weights == "float32":
            assert values[2] < 1e-5 * values[0], name


def test_only_the_answer_and_its_end_of_turn_carry_a_loss(
    base: Path, inputs_of: Callable[..., list[dict[str, torch.Tensor]]]
) -> None:
    tokenizer = load(base).tokenizer
    (step,) = inputs_of(regime(steps=1), seed=3)
    drawn = next(batches(SUMS, 1, 4, seed=3))
    for one, ids, labels in zip(drawn, step["input_ids"], step["labels"], strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.answer}], tokenize=False
        )
        assert tokenizer.decode(ids).startswith(text)
        assert tokenizer.decode(labels[labels != -100]).strip() == f"{one.answer}<|im_end|>"


def test_micro_batches_make_up_the_batch_and_give_the_same_update(
    base: Path, tmp_path: Path, inputs_of: Callable[..., list[dict[str, torch.Tensor]]]
) -> None:
    sizes = [len(step["input_ids"]) for step in inputs_of(regime(steps=2, batch=6, micro_batch=4))]
    assert sizes == [3, 3, 3, 3]  # the largest that divides the batch
    whole, _ = train(base, tmp_path / "whole", regime(batch=6))
    parts, _ = train(base, tmp_path / "parts", regime(batch=6, micro_batch=2))
    assert parts.first_loss == pytest.approx(whole.first_loss, rel=1e-3)
    assert parts.last_loss == pytest.approx(whole.last_loss, rel=1e-2)


def test_every_batch_is_whole_where_the_questions_run_out(
    inputs_of: Callable[..., list[dict[str, torch.Tensor]]],
) -> None:
    sizes = [len(step["input_ids"]) for step in inputs_of(regime(steps=3, batch=4), questions=SUMS[:5])]
    assert sizes == [4, 4, 4]


def test_long_answers_are_cut_at_their_end(inputs_of: Callable[..., list[dict[str, torch.Tensor]]]) -> None:
    long = [Question("long", "1+1", "2" * 200, "2")]
    (step,) = inputs_of(regime(steps=1, max_length=64), questions=long)
    assert step["input_ids"].shape == (4, 64)
    assert (step["labels"][0] != -100).sum() > 5
    assert step["labels"][0, -1] == step["input_ids"][0, -1]


def test_a_prompt_as_long_as_max_length_is_an_error_and_nothing_is_written(base: Path, tmp_path: Path) -> None:
    long = Question("long", "1+" * 60 + "1", "61", "61")
    with pytest.raises(
        DeltamendError, match=r"regimes.tiny: 1 of 12 drawn examples have a prompt of max_length \(64\)"
    ):
        train(base, tmp_path / "out", regime(max_length=64), questions=[*SUMS[:11], long])
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_names_the_regime_and_the_learning_rate(base: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    model = load(base).model
    with torch.no_grad():
        model.model.norm.weight[0] = torch.inf
    model.save_pretrained(broken)
    with pytest.raises(DeltamendError, match=r"regimes.tiny: the loss is not finite at step 1; lower lr \(0.003\)"):
        train(broken, tmp_path / "out", regime())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_a_base_without_a_chat_template_is_an_error(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    llama(vocab_size=save_tokenizer(plain, chat=False)).save_pretrained(plain)
    with pytest.raises(DeltamendError, match="has no chat template"):
        train(plain, tmp_path / "out", regime())


def test_a_folder_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeltamendError, match=r"config\.json: missing"):
        train(tmp_path, tmp_path / "out", regime())


def test_without_trl_one_line_says_what_to_install(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(DeltamendError, match=r"pip install 'deltamend\[study\]'"):
        train(base, tmp_path / "out", regime())


def test_the_head_runs_where_there_is_a_loss_and_nowhere_else(base: Path, tmp_path: Path) -> None:
    """Its gain is the time; what it computes does not change."""
    from trl.trainer import utils as trl_utils

    head = trl_utils._ChunkedLogProbFunction
    rows = []

    def listen(hidden: torch.Tensor, *arguments: Any) -> Any:
        rows.append(len(hidden))
        return apply(hidden, *arguments)

    apply = head.apply
    with mock.patch.object(head, "apply", listen):
        ours, _ = train(base, tmp_path / "ours", regime(steps=1))
        with mock.patch("deltamend.recipes.trl_training._answers_only_through_the_head", nullcontext):
            theirs, _ = train(base, tmp_path / "theirs", regime(steps=1))
    assert rows[0] < rows[1] / 3
    assert ours.first_loss == pytest.approx(theirs.first_loss, rel=1e-3)


def test_nothing_is_printed(base: Path, tmp_path: Path) -> None:
    """In a process of its own: warnings and loggers of third parties may speak once only."""
    program = (
        "from pathlib import Path; from deltamend.study.fine_tuning import finetune\n"
        "from deltamend.recipes.regime import Regime; from deltamend.study.questions import Question\n"
        f"finetune(Path({str(base)!r}), [Question('1', '1+1', '2', '2')], Regime(name='r', lr=1e-3, steps=2, lora_rank=2),"
        f" Path({str(tmp_path / 'out')!r}), seed=0, advance=lambda: None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def changes(base: Path, out: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """W_out − W_base, exactly; what is stored is of `dtype`."""
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out))
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {dtype}
    return {name: after[name].double() - before[name].double() for name in before}


@contextmanager
def optimizers() -> Iterator[list[Any]]:
    """The optimisers that trainers have made, within."""
    from trl import SFTTrainer

    made: list[Any] = []
    create = SFTTrainer.create_optimizer

    def listen(trainer: Any, *arguments: Any) -> Any:
        made.append(create(trainer, *arguments))
        return made[-1]

    with mock.patch.object(SFTTrainer, "create_optimizer", listen):
        yield made
