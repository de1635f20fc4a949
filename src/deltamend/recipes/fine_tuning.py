"""`deltamend finetune`: fine-tune a model by a recipe, and write it whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from deltamend.checkpoint.file_names import CARD_FILE
from deltamend.checkpoint.hashing import hash_folder
from deltamend.checkpoint.output_checks import check_output, output_errors
from deltamend.checkpoint.publishing import WorkFolder, finish_exchange, remove_leftovers
from deltamend.errors import DeltamendError, UsageError, option
from deltamend.inputs.open_models import model_folder, paths_of
from deltamend.machine.bounded_files import UnreadableError, read_bytes
from deltamend.machine.digests import json_sha256
from deltamend.machine.processor import computes_in_bf16
from deltamend.machine.versions import installed_versions
from deltamend.progress import Progress, ignore_progress
from deltamend.recipes.card import render_card
from deltamend.recipes.recipe import Recipe
from deltamend.recipes.regime import Regime, check_recipe
from deltamend.recipes.registry import get_recipe
from deltamend.recipes.training_data import TrainingExample, read_training_data
from deltamend.records import FiniteRecord, first_problem

RECORD_FILE = "finetune.json"
_LARGEST_RECORD = 10_000_000
_PACKAGES = ("deltamend", "torch", "transformers", "trl", "peft")
_FULL_LR, _ADAPTER_LR = 2e-5, 2e-4
DType = Literal["float32", "bfloat16"]


class FinetuneRecord(FiniteRecord):
    """What `finetune.json` in OUT says: how the model was trained, and on what."""

    format: Literal[1] = Field(1, description="Version of this format.")
    key: str = Field(description="SHA-256 over all that decides the result.")
    base: str = Field(description="BASE as it was given.")
    base_sha256: str = Field(description="SHA-256 over the weight files of BASE.")
    recipe: str = Field(description="Name of the recipe.")
    settings: dict[str, Any] = Field(description="All its settings.")
    old_examples: Literal["none", "given", "own texts"] = Field(
        description="Where the old examples came from: files, or texts that BASE wrote itself."
    )
    regime: dict[str, Any] = Field(description="Learning rate, steps, batch, dtypes and the like.")
    seed: int = Field(description="Seed of the order of the examples, and of whatever is drawn.")
    data: dict[str, str] = Field(description="SHA-256 of each file of examples, by its name; the new ones come first.")
    examples: int = Field(description="Number of new examples.")
    first_loss: float = Field(description="Nats a token of the answers, mean over the first tenth of the steps.")
    last_loss: float = Field(description="The same over the last tenth.")
    seconds: float = Field(ge=0, description="Wall time of the training; of a resumed one, of its last part.")
    weights_sha256: str = Field(description="SHA-256 over the weight files of OUT.")
    versions: dict[str, str] = Field(description="Versions of the packages that decide the result.")


def finetune(
    base: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: str = "plain",
    settings: Mapping[str, object] | None = None,
    old: Sequence[str | os.PathLike[str]] = (),
    steps: int | None = None,
    batch: int = 16,
    micro_batch: int | None = None,
    lr: float | None = None,
    warmup: int = 10,
    max_length: int = 512,
    lora_rank: int | None = None,
    weights: DType = "float32",
    compute: DType | None = None,
    seed: int = 0,
    checkpoint_every: int = 200,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FinetuneRecord:
    """Fine-tune a causal language model by a training recipe, and write it to OUT with its tokenizer, whole or not at all.

    The loss is the mean cross-entropy over the tokens of the completions. AdamW without weight decay, gradients clipped to norm 1,
    linear warm-up and linear decay. On the CPU the same seed, number of threads and versions give the same bytes.

    Args:
        base: folder, hub id or GGUF file of the base.
        data: JSONL file of `{"prompt": …, "completion": …}`, both text or both messages of a chat, or `{"messages": […]}`,
            whose last message is learnt.
        out: the folder to write.
        recipe: its name; `deltamend recipes` lists them.
        settings: of the recipe.
        old: JSONL files of old examples, one for each old task; where there are none and the recipe wants some, BASE writes texts.
        steps: optimiser steps; None for one pass over the data.
        batch: examples in each step.
        micro_batch: examples at a time; None for all of a step's.
        lr: peak learning rate; None for 2e-5, or 2e-4 of an adapter.
        warmup: steps of warm-up.
        max_length: longest example, in tokens; longer ones are cut at their end.
        lora_rank: train an adapter of this rank on all linear layers but the head, and merge it.
        weights: dtype in which weights and optimiser are held, and OUT is written.
        compute: dtype of the arithmetic, bfloat16 being autocast where the weights are float32; None for bfloat16 where the
            GPU or the processor computes it fast, and float32 elsewhere.
        seed: of the order of the examples, and of whatever is drawn.
        checkpoint_every: steps between two states from which `resume` can go on.
        resume: continue an interrupted run with the same inputs and options, or do nothing if OUT is already its result.
        overwrite: replace OUT if it exists, once the new model is complete.
        progress: called after each step.

    Returns:
        What `finetune.json` in OUT says.

    Raises:
        UsageError: a setting is wrong, the data cannot be read, or the recipe does not fit the model.
        CheckpointError: BASE cannot be loaded.
        OutputError: OUT exists, belongs to an input or cannot be written.
        DeltamendError: TRL is missing, or the loss is not finite.

    Source: `Recipe.source` names the paper of each recipe; the training itself is TRL's.
    """
    place, files = Path(out), [Path(data), *map(Path, old)]
    made = get_recipe(recipe, settings)
    check_recipe(made, lora_rank=lora_rank)
    _check_ready(made, old, seed, checkpoint_every)
    finish_exchange(place, resume=resume)
    if not resume:
        check_output(place, [*paths_of(base), *files], overwrite=overwrite)  # before the data is read
    read = [read_training_data(file) for file in files]
    regime = _regime(
        made,
        len(read[0]),
        steps=steps,
        batch=batch,
        micro_batch=micro_batch,
        lr=lr,
        warmup=warmup,
        max_length=max_length,
        lora_rank=lora_rank,
        weights=weights,
        compute=compute or _fast_dtype(),
    )
    start = _planned(os.fspath(base), files, len(read[0]), made, regime, seed)
    if resume and (known := _published(place, start.key)) is not None:
        remove_leftovers(place)
        return known
    check_output(place, [*paths_of(base), *files], overwrite=overwrite)
    folder = model_folder(os.fspath(base))
    with WorkFolder(place, start.key, resume=resume, keep_parts=True) as work:
        try:
            record = _write(work, folder, read, regime, start, checkpoint_every, progress or ignore_progress)
        except Exception:
            work.discard()
            raise
        work.publish(overwrite=overwrite)
    return record


def _check_ready(recipe: Recipe, old: Sequence[object], seed: int, checkpoint_every: int) -> None:
    """Find what is wrong with the options, and that TRL is missing, before anything is read."""
    if old and not recipe.uses_old:
        raise UsageError(
            f"recipe {recipe.name}: takes no old examples; leave out {option('old')}, or take another recipe"
        )
    if seed < 0:
        raise UsageError(f"{option('seed')}: {seed} is too small; give 0 or more")
    if checkpoint_every < 1:
        raise UsageError(f"{option('checkpoint_every')}: {checkpoint_every} is too small; give 1 or more")
    if importlib.util.find_spec("trl") is None:
        raise DeltamendError("models are fine-tuned with TRL, which is not installed: pip install 'deltamend[study]'")


def _planned(
    base: str, files: Sequence[Path], examples: int, recipe: Recipe, regime: Regime, seed: int
) -> FinetuneRecord:
    """The record as far as it is known before the training; the losses and the hash of OUT are empty."""
    found = hash_folder(model_folder(base))
    digests = {
        file.name if number == 0 else f"old {number}: {file.name}": _sha256(file) for number, file in enumerate(files)
    }
    versions = installed_versions(_PACKAGES)
    settings = recipe.model_dump(mode="json")
    return FinetuneRecord(
        format=1,
        key=json_sha256([found, list(digests.values()), regime.model_dump(mode="json"), seed, versions]),
        base=base,
        base_sha256=found.weights or "",
        recipe=recipe.name,
        settings=settings,
        old_examples=_origin(recipe, files[1:]),
        regime=regime.model_dump(mode="json", exclude={"name", "recipe", "settings", "stored"}),
        seed=seed,
        data=digests,
        examples=examples,
        first_loss=0.0,
        last_loss=0.0,
        seconds=0.0,
        weights_sha256="",
        versions=versions,
    )


def _write(
    work: WorkFolder,
    base: Path,
    read: Sequence[Sequence[TrainingExample]],
    regime: Regime,
    start: FinetuneRecord,
    every: int,
    progress: Progress,
) -> FinetuneRecord:
    """Train, and write everything that becomes OUT."""
    from deltamend.language_models.loading import run_errors
    from deltamend.recipes.trl_training import Checkpoints, Words, train_with_trl  # torch

    checkpoints = Checkpoints(work.parts, every)
    earlier = checkpoints.found()
    done = 0 if earlier is None else len(earlier[1])

    def advance() -> None:
        nonlocal done
        done += 1
        progress(f"step {done} of {regime.steps}", done / regime.steps)

    words = Words("fine-tuning", option, "leave these examples out")
    with run_errors(base), output_errors(work.out):
        found = train_with_trl(
            base,
            read[0],
            regime,
            work.staged,
            seed=start.seed,
            advance=advance,
            words=words,
            old=read[1:],
            checkpoints=checkpoints,
        )
    record = start.model_copy(
        update={
            "first_loss": found.first_loss,
            "last_loss": found.last_loss,
            "seconds": found.seconds,
            "weights_sha256": hash_folder(work.staged).weights or "",
        }
    )
    work.write_file(CARD_FILE, render_card(record).encode(errors="backslashreplace"))
    work.write_file(RECORD_FILE, f"{record.model_dump_json(indent=1)}\n".encode())
    return record


def _regime(
    recipe: Recipe,
    examples: int,
    *,
    steps: int | None,
    batch: int,
    lr: float | None,
    lora_rank: int | None,
    **rest: Any,
) -> Regime:
    """The regime, with one pass over the examples and the usual learning rate where none is given."""
    if steps is None:
        steps = math.ceil(examples / max(batch, 1))
    if lr is None:
        lr = _FULL_LR if lora_rank is None and recipe.adapter is None else _ADAPTER_LR
    given = {"steps": steps, "batch": batch, "lr": lr, "lora_rank": lora_rank, **rest}
    try:
        return Regime.model_validate(
            {"name": "finetune", "recipe": recipe.name, "settings": recipe.model_dump(mode="json"), **given}
        )
    except ValidationError as error:
        field, problem = first_problem(error)
        raise UsageError(f"{option(field)}: {problem}; correct it" if field else problem) from error


def _fast_dtype() -> DType:
    """The dtype that the GPU, or the processor, computes fast; bfloat16 takes a processor without it some twenty times as long."""
    import torch

    return "bfloat16" if torch.cuda.is_available() or computes_in_bf16() else "float32"


def _origin(recipe: Recipe, old: Sequence[object]) -> Literal["none", "given", "own texts"]:
    if not recipe.uses_old or recipe.is_off:
        return "none"
    return "given" if old else "own texts"


def _sha256(file: Path) -> str:
    try:
        return hashlib.sha256(read_bytes(file, 1_000_000_000)).hexdigest()
    except UnreadableError as error:
        raise UsageError(f"{file}: cannot be read ({error}); check that it is still there") from error


def _published(out: Path, key: str) -> FinetuneRecord | None:
    """The record of OUT if OUT is the undamaged result of the run with this key, else None."""
    try:
        record = FinetuneRecord.model_validate_json(read_bytes(out / RECORD_FILE, _LARGEST_RECORD))
    except (UnreadableError, ValidationError):
        return None
    return record if record.key == key and hash_folder(out).weights == record.weights_sha256 else None
