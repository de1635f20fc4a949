"""Fine-tune a language model through TRL by a recipe: full or LoRA, weights in fp32 or in bf16, and resumable."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from unittest import mock

from deltamend.checkpoint.publishing import sync_folder
from deltamend.errors import DeltamendError
from deltamend.evaluation.third_party_output import third_parties_quiet
from deltamend.language_models.loading import LoadedModel, load
from deltamend.language_models.training import Example
from deltamend.machine.atomic import publish, write_whole
from deltamend.machine.templates import limited_templates
from deltamend.recipes.bf16_state import hold_in_bf16
from deltamend.recipes.language_model_run import own_examples, run_of_language_model
from deltamend.recipes.recipe import AdapterSettings, RunningRecipe
from deltamend.recipes.regime import Regime
from deltamend.recipes.training_data import TrainingExample, as_token_examples


class Trained(NamedTuple):
    """How a training went: steps, wall seconds, and the loss in nats a token of the answers, over the first and last tenth."""

    steps: int
    seconds: float
    first_loss: float
    last_loss: float


@dataclass(frozen=True)
class Words:
    """How errors are worded.

    Attributes:
        where: what they begin with, such as "regimes.fp32".
        name: spells a setting of the regime.
        long_prompts: the advice for prompts that are too long.
    """

    where: str
    name: Callable[[str], str]
    long_prompts: str


@dataclass(frozen=True)
class Checkpoints:
    """States from which an interrupted training goes on.

    Attributes:
        folder: where they lie; the last one alone is kept, and a file that names it is written when it is whole.
        every: steps between two of them.
    """

    folder: Path
    every: int

    @property
    def _last(self) -> Path:
        return self.folder / "last.json"

    def found(self) -> tuple[Path, list[float]] | None:
        """The last state, and the losses up to it; None where there is none."""
        if not self._last.exists():
            return None
        noted = json.loads(self._last.read_text(encoding="utf-8"))
        return self.folder / f"checkpoint-{int(noted['step'])}", [float(one) for one in noted["losses"]]

    def keep(self, step: int, losses: list[float]) -> None:
        """Take the state of a step as the last one, once it is on the disk, and delete those before it."""
        sync_folder(self.folder / f"checkpoint-{step}")
        write_whole(self._last, json.dumps({"step": step, "losses": losses}))
        for older in self.folder.glob("checkpoint-*"):
            if older.name != f"checkpoint-{step}":
                shutil.rmtree(older, ignore_errors=True)


def train_with_trl(
    base: Path,
    examples: Sequence[TrainingExample],
    regime: Regime,
    out: Path,
    *,
    seed: int,
    advance: Callable[[], None],
    words: Words,
    old: Sequence[Sequence[TrainingExample]] = (),
    adapter: Path | None = None,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Fine-tune the model in `base` by the recipe of `regime`, and write it with its tokenizer into the folder `out`.

    See `study.fine_tuning.finetune` for what the regime means. A recipe that wants old examples is given `old`, one group for each
    old task, or texts that the base writes itself where there are none.

    Args:
        base: folder of a causal language model.
        examples: what to learn from; at least one.
        regime: how.
        out: an empty folder.
        seed: of the order of the examples, of an adapter's first weights, and of what the recipe draws.
        advance: called after each optimiser step.
        words: for errors.
        old: old examples.
        adapter: the folder to write an adapter to as PEFT does; None not to keep it.
        checkpoints: states to write, and to go on from; None to write none.

    Raises:
        UsageError: the recipe does not fit the model, or an old example is too long.
        DeltamendError: TRL is missing, the model cannot be loaded or has no chat template for chats, an example's prompt is
            too long, the loss is not finite, or the GPU's memory is full.
    """
    started = time.monotonic()
    trl = _trl()
    import torch

    with third_parties_quiet(), limited_templates():
        loaded = _load(base, regime, chats=any(one.is_chat for one in (*examples, *chain.from_iterable(old))))
        earlier = None if checkpoints is None else checkpoints.found()
        losses: list[float] = [] if earlier is None else list(earlier[1])
        recalled = _old_examples(loaded, regime, old, seed)
        try:
            trainer = _trainer(trl)(
                model=loaded.model,
                args=trl.SFTConfig(
                    **_settings(regime, seed, checkpoints),
                    output_dir=str(out if checkpoints is None else checkpoints.folder),
                    use_cpu=not torch.cuda.is_available(),
                ),
                train_dataset=_dataset(examples, regime, seed),
                processing_class=loaded.tokenizer,
                peft_config=_adapter(regime),
                callbacks=[_watcher(regime, losses, advance, words, checkpoints)],
            )
            _check_lengths(trainer, regime, words)
            if _holds_bf16(regime):
                hold_in_bf16(trainer.model, trainer.create_optimizer())
            trainer.remove_callback(importlib.import_module("transformers").PrinterCallback)
            run = run_of_language_model(
                trainer.model,
                recalled,
                steps=regime.steps,
                batch=regime.batch,
                lr=regime.lr,
                seed=seed,
                autocast=regime.weights == "float32" and regime.compute == "bfloat16",
                at_once=_at_once(regime),
            )
            trainer.follow(regime.made_recipe().start(run))
            with _answers_only_through_the_head():
                trainer.train(resume_from_checkpoint=None if earlier is None else str(earlier[0]))
        except torch.cuda.OutOfMemoryError as error:
            raise DeltamendError(
                f"{words.where}: the GPU's memory is full; give a smaller {words.name('micro_batch')}"
            ) from error
        _write_model(trainer.model, loaded.tokenizer, regime, out, adapter)
    tenth = max(1, len(losses) // 10)
    return Trained(len(losses), time.monotonic() - started, fmean(losses[:tenth]), fmean(losses[-tenth:]))


def _write_model(trained: Any, tokenizer: Any, regime: Regime, out: Path, adapter: Path | None) -> None:
    """Write what training gave, an adapter merged in fp32 and the sum rounded once."""
    import torch

    if regime.trains_adapter:
        if adapter is not None:
            with publish(adapter) as folder:
                trained.save_pretrained(folder)
        trained = trained.float().merge_and_unload()
    trained.to(getattr(torch, regime.weights)).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _old_examples(
    loaded: LoadedModel, regime: Regime, old: Sequence[Sequence[TrainingExample]], seed: int
) -> list[list[Example]]:
    """The old examples that the recipe wants, as tokens."""
    recipe = regime.made_recipe()
    if not recipe.uses_old or recipe.is_off:
        return []
    if old:
        return [as_token_examples(group, loaded.tokenizer, regime.max_length) for group in old]
    return [own_examples(loaded, seed)]


def _trainer(trl: Any) -> Any:
    """TRL's trainer, which a recipe looks after."""

    class RecipeTrainer(trl.SFTTrainer):  # type: ignore[misc]  # TRL is Any
        def follow(self, running: RunningRecipe) -> None:
            """Take up a recipe."""
            self._running = running
            self.add_callback(_steps(running))

        def training_step(self, *arguments: Any, **named: Any) -> Any:
            loss = super().training_step(*arguments, **named)
            if self.accelerator.sync_gradients:  # the last part of the batch
                self._running.after_backward(self.state.global_step)
            return loss

    return RecipeTrainer


def _steps(running: RunningRecipe) -> Any:
    """A callback of the trainer that tells a recipe of the steps."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]  # transformers is Any
        def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            running.before_step(state.global_step)

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            running.after_step(state.global_step - 1)

    return Steps()


def check_trl() -> None:
    """Whether TRL is installed; it is not imported, which takes seconds.

    Raises:
        DeltamendError: it is not.
    """
    if importlib.util.find_spec("trl") is None:
        raise DeltamendError("models are fine-tuned with TRL, which is not installed: pip install 'deltamend[study]'")


def _trl() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("trl")
    except ImportError as error:
        raise DeltamendError(f"models are fine-tuned with TRL ({error}): pip install 'deltamend[study]'") from error


def _load(base: Path, regime: Regime, *, chats: bool) -> LoadedModel:
    try:
        loaded = load(base, dtype="float32" if _holds_bf16(regime) else regime.weights)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DeltamendError(f"{base}: transformers cannot load it ({reason}); give a causal language model") from error
    if chats and not loaded.tokenizer.chat_template:
        raise DeltamendError(f"{base}: has no chat template; give one as the model's `chat_template`")
    return loaded


def _holds_bf16(regime: Regime) -> bool:
    """Whether bf16 weights are computed with in fp32; an adapter is trained in fp32 anyway."""
    return regime.weights == "bfloat16" and regime.compute == "float32" and not regime.trains_adapter


def _at_once(regime: Regime) -> int:
    """Examples that are run at a time: the largest part of a batch that `micro_batch` allows."""
    most = min(regime.micro_batch or regime.batch, regime.batch)
    return next(size for size in range(most, 0, -1) if regime.batch % size == 0)


def _settings(regime: Regime, seed: int, checkpoints: Checkpoints | None) -> dict[str, Any]:
    """Of SFTConfig. What is left out has transformers' own default."""
    at_once = _at_once(regime)
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
        "save_strategy": "no" if checkpoints is None else "steps",
        "save_steps": 1 if checkpoints is None else checkpoints.every,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _dataset(examples: Sequence[TrainingExample], regime: Regime, seed: int) -> Any:
    """The examples in the order in which they are learnt, `batch` for each step, as TRL's prompts and completions."""
    import datasets

    from deltamend.language_models.training import batches  # imports torch

    drawn = chain.from_iterable(batches(examples, regime.steps, regime.batch, seed=seed))
    return datasets.Dataset.from_list([one.for_trl() for one in drawn])


def _adapter(regime: Regime) -> Any:
    settings = regime.made_recipe().adapter
    if settings is None and regime.lora_rank is not None:
        settings = AdapterSettings(regime.lora_rank, 2 * regime.lora_rank, "all-linear")
    if settings is None:
        return None
    import peft

    layers = (
        "all-linear" if settings.layers == "all-linear" else None
    )  # None: those that PEFT's table names for the model
    return peft.LoraConfig(
        r=settings.rank, lora_alpha=int(settings.alpha), target_modules=layers, task_type="CAUSAL_LM"
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


def _check_lengths(trainer: Any, regime: Regime, words: Words) -> None:
    """TRL leaves out, without a word that is seen, examples whose answer was cut off whole."""
    given = regime.steps * regime.batch
    missing = given - len(trainer.train_dataset)
    if missing:
        raise DeltamendError(
            f"{words.where}: {missing} of {given} drawn examples have a prompt of {words.name('max_length')} ({regime.max_length}) "
            f"tokens or more; raise it, or {words.long_prompts}"
        )


def _watcher(
    regime: Regime, losses: list[float], advance: Callable[[], None], words: Words, checkpoints: Checkpoints | None
) -> Any:
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
                    f"{words.where}: the loss is not finite at step {len(losses)}; lower {words.name('lr')} ({regime.lr})"
                )

        def on_step_end(self, *_: Any, **__: Any) -> None:
            advance()

        def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if checkpoints is not None:
                checkpoints.keep(state.global_step, losses)

    return Watcher()
