"""Fine-tune a base model in one regime of a study, through TRL: full or LoRA, weights in fp32 or in bf16."""

from __future__ import annotations

import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

from deltamend.checkpoint.hashing import hash_folder
from deltamend.errors import DeltamendError
from deltamend.evaluation.third_party_output import third_parties_quiet
from deltamend.language_models.loading import LoadedModel, load
from deltamend.machine.atomic import publish
from deltamend.machine.templates import limited_templates
from deltamend.study.bf16_state import hold_in_bf16
from deltamend.study.config import Regime
from deltamend.study.questions import Question
from deltamend.study.records import FinetuneFacts


def finetune(
    base: Path,
    questions: Sequence[Question],
    regime: Regime,
    out: Path,
    *,
    seed: int,
    advance: Callable[[], None],
    adapter: Path | None = None,
) -> FinetuneFacts:
    """Fine-tune the model in `base` on the questions, and write it to `out` with its tokenizer, whole or not at all.

    Each example is one user message and the answer, by the model's own chat template; the loss is the mean cross-entropy
    over the batch's tokens of the answers, with what the template writes after them: the end of the turn. `steps` ×
    `batch` examples are drawn without replacement until the questions run out, then again in another order; `seed`
    decides which. AdamW without weight decay (β 0.9, 0.999), gradients clipped to norm 1; with a warm-up the first step
    has learning rate 0, as transformers counts. An example of more than `max_length` tokens is cut at its end; one whose
    prompt alone is as long has nothing left to learn from and is an error.

    - weights float32: fp32 weights and optimiser, computed in fp32, or with `compute: bfloat16` in bf16 autocast.
    - weights bfloat16 ("pure bf16"): weights, gradients and both moments of AdamW in bf16, with no fp32 copy: updates below
      half a unit in the last place are lost, and most entries do not change at all. With `compute: float32` only the
      arithmetic of the forward and backward pass is fp32, for processors without bf16 instructions; see `bf16_state`.
    - lora_rank: only an adapter on all linear layers but the head is trained, α = 2·rank, in fp32 by either of `weights`;
      it is merged in fp32 and the sum rounded once to `weights`. The adapter itself is written to `adapter`.

    Runs on the GPU where there is one. On the CPU the same seed, number of threads and versions give the same bytes.
    torch's and Python's global random states are set to `seed`.

    Args:
        base: folder of a causal language model with a chat template.
        questions: what to learn from; at least one.
        regime: how.
        out: the folder to write; one that is there is replaced.
        seed: of the order of the examples, and of the adapter's first weights.
        advance: called after each optimiser step.
        adapter: with `lora_rank`, the folder to write the adapter to as PEFT does; None not to keep it.

    Raises:
        DeltamendError: TRL is missing, the model cannot be loaded or has no chat template, an example's prompt is too
            long, the loss is not finite, or the GPU's memory is full.
    """
    started = time.monotonic()
    trl = _trl()
    import torch

    with third_parties_quiet(), limited_templates(), publish(out) as part:
        model, tokenizer = _load(base, regime)
        losses: list[float] = []
        try:
            trainer = trl.SFTTrainer(
                model=model,
                args=trl.SFTConfig(
                    **_settings(regime, seed), output_dir=str(part), use_cpu=not torch.cuda.is_available()
                ),
                train_dataset=_dataset(questions, regime, seed),
                processing_class=tokenizer,
                peft_config=_adapter(regime),
                callbacks=[_watcher(regime, losses, advance)],
            )
            _check_lengths(trainer, regime)
            if _holds_bf16(regime):
                hold_in_bf16(trainer.model, trainer.create_optimizer())
            trainer.remove_callback(importlib.import_module("transformers").PrinterCallback)
            with _answers_only_through_the_head():
                trainer.train()
        except torch.cuda.OutOfMemoryError as error:
            raise DeltamendError(
                f"regimes.{regime.name}: the GPU's memory is full; give a smaller micro_batch"
            ) from error
        trained = trainer.model
        if regime.lora_rank is not None:
            if adapter is not None:
                with publish(adapter) as folder:
                    trained.save_pretrained(folder)
            trained = trained.float().merge_and_unload()
        trained.to(getattr(torch, regime.weights)).save_pretrained(part)
        tokenizer.save_pretrained(part)
        weights = hash_folder(part).weights
    tenth = max(1, len(losses) // 10)
    return FinetuneFacts(
        steps=len(losses),
        seconds=time.monotonic() - started,
        first_loss=fmean(losses[:tenth]),
        last_loss=fmean(losses[-tenth:]),
        model_hash=weights or "",
    )


def check_trl() -> None:
    """Whether TRL is installed; it is not imported, which takes seconds.

    Raises:
        DeltamendError: it is not.
    """
    if importlib.util.find_spec("trl") is None:
        raise DeltamendError("a study fine-tunes with TRL, which is not installed: pip install 'deltamend[study]'")


def _trl() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("trl")
    except ImportError as error:
        raise DeltamendError(f"a study fine-tunes with TRL ({error}): pip install 'deltamend[study]'") from error


def _load(base: Path, regime: Regime) -> LoadedModel:
    try:
        loaded = load(base, dtype="float32" if _holds_bf16(regime) else regime.weights)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DeltamendError(f"{base}: transformers cannot load it ({reason}); give a causal language model") from error
    if not loaded.tokenizer.chat_template:
        raise DeltamendError(f"{base}: has no chat template; give one as the model's `chat_template`")
    return loaded


def _holds_bf16(regime: Regime) -> bool:
    """Whether bf16 weights are computed with in fp32; an adapter is trained in fp32 anyway."""
    return regime.weights == "bfloat16" and regime.compute == "float32" and regime.lora_rank is None


def _settings(regime: Regime, seed: int) -> dict[str, Any]:
    """Of SFTConfig. What is left out has transformers' own default."""
    at_once = min(regime.micro_batch or regime.batch, regime.batch)
    at_once = next(size for size in range(at_once, 0, -1) if regime.batch % size == 0)
    return {
        "max_steps": regime.steps,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": regime.batch // at_once,
        "train_sampling_strategy": "sequential",  # the order is drawn already
        "seed": seed,
        "max_length": regime.max_length,
        "completion_only_loss": True,
        "optim": "adamw_torch_fused",
        "learning_rate": regime.lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": regime.warmup,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": regime.weights == "float32" and regime.compute == "bfloat16",  # autocast
        "gradient_checkpointing": False,  # it runs every forward pass twice; micro_batch saves memory as well
        "logging_steps": 1,  # every step's loss; TRL's metrics pile up between two logs
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _dataset(questions: Sequence[Question], regime: Regime, seed: int) -> Any:
    """The examples in the order in which they are learnt, `batch` for each step, as TRL's conversational prompts and completions."""
    import datasets

    from deltamend.language_models.training import batches  # imports torch

    drawn = chain.from_iterable(batches(questions, regime.steps, regime.batch, seed=seed))
    return datasets.Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": one.question}],
                "completion": [{"role": "assistant", "content": one.answer}],
            }
            for one in drawn
        ]
    )


def _adapter(regime: Regime) -> Any:
    if regime.lora_rank is None:
        return None
    import peft

    return peft.LoraConfig(
        r=regime.lora_rank, lora_alpha=2 * regime.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )


@contextmanager
def _answers_only_through_the_head() -> Iterator[None]:
    """Have TRL run the head where there is a loss, as it does on a GPU, and not over prompts and padding.

    TRL 1.16 does that only where its Triton kernels run, to spare accelerators that compile for each shape. On the CPU
    the loss is the same, and a step of SmolLM2-135M on 16 sums takes 4.2 s of one core in place of 7.0. Where TRL has
    renamed the switch, nothing but the time changes.
    """
    owner, switch = importlib.import_module("trl.trainer.utils"), "_use_triton"
    with mock.patch.object(owner, switch, return_value=True) if hasattr(owner, switch) else nullcontext():
        yield


def _check_lengths(trainer: Any, regime: Regime) -> None:
    """TRL leaves out, without a word that is seen, examples whose answer was cut off whole."""
    given = regime.steps * regime.batch
    missing = given - len(trainer.train_dataset)
    if missing:
        raise DeltamendError(
            f"regimes.{regime.name}: {missing} of {given} drawn examples have a prompt of max_length ({regime.max_length}) "
            "tokens or more; raise it, or leave long questions out by the target's `longest`"
        )


def _watcher(regime: Regime, losses: list[float], advance: Callable[[], None]) -> Any:
    """A callback of the trainer that keeps each step's loss."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]  # transformers is Any
        def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
            state.log_history.clear()
            if "loss" not in logs:  # the summary at the end
                return
            losses.append(logs["loss"])
            if not (math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm", 0.0))):
                raise DeltamendError(
                    f"regimes.{regime.name}: the loss is not finite at step {len(losses)}; lower lr ({regime.lr})"
                )

        def on_step_end(self, *_: Any, **__: Any) -> None:
            advance()

    return Watcher()
