"""The activations that repairs of a study go by: of a base over its own texts, of a fine-tuned model over its own or over training examples."""

from __future__ import annotations

import glob
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deltamend.calibration.activations import write_activations
from deltamend.checkpoint.hashing import hash_folder
from deltamend.machine.digests import fingerprint
from deltamend.machine.threads import one_thread_each
from deltamend.methods.input_moments import VERSION, is_whole
from deltamend.study.base_model import Workplace
from deltamend.study.config import ModelEntry, Target
from deltamend.study.questions import spread, training_questions
from deltamend.study.repair_config import OWN, TRAINING_EXAMPLES, Repair

_LONGEST_EXAMPLE = 512
"""In tokens."""
_BESIDE = "-activations-"
"""Between the name of a fine-tuned model and of its texts, in the name of a file."""


def activations_of(place: Workplace, model: ModelEntry, base: Path) -> Path:
    """Second moments of a base's activations over texts of its own; made where they are not there yet.

    Raises:
        DeltamendError: the base cannot be loaded, or stores its weights in a way that null-space does not read.
    """
    wanted = place.study.own_texts
    digest = fingerprint([VERSION, hash_folder(base), wanted.model_dump()])
    file = place.model_folder(f"activations-{model.name}-{digest}.safetensors")
    if not is_whole(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with one_thread_each():
            write_activations(
                base, file, samples=wanted.samples, tokens=wanted.tokens, seed=wanted.seed, overwrite=True
            )
    return file


def target_activations_of(place: Workplace, target: Target, tuned: Path, repair: Repair) -> Path:
    """Second moments of a fine-tuned model's activations; made where they are not there yet.

    Args:
        place: where the study runs.
        target: what the model was fine-tuned on.
        tuned: folder of the fine-tuned model; the file lies beside it.
        repair: its `target_activations` say whether over texts that the model writes itself, like a base's, or over a few of its
            training examples, evenly over their order.

    Raises:
        DeltamendError: the model cannot be loaded, or the items cannot be read.
    """
    wanted = repair.finetuned_texts or place.study.own_texts
    texts = repair.target_texts
    examples = [] if texts == OWN else spread(training_questions(target, place.data), TRAINING_EXAMPLES)
    asked = [{"prompt": one.question, "response": one.answer} for one in examples]
    digest = fingerprint([VERSION, hash_folder(tuned), asked or wanted.model_dump()])
    file = tuned.with_name(f"{tuned.name}{_BESIDE}{texts}-{digest}.safetensors")
    if is_whole(file):
        return file
    with one_thread_each(), tempfile.TemporaryDirectory() as folder:
        if texts == OWN:
            write_activations(
                tuned, file, samples=wanted.samples, tokens=wanted.tokens, seed=wanted.seed, overwrite=True
            )
        else:
            lines = Path(folder, "training.jsonl")
            lines.write_text("".join(f"{json.dumps(one)}\n" for one in asked), encoding="utf-8")
            write_activations(tuned, file, texts=lines, chat=True, tokens=_LONGEST_EXAMPLE, overwrite=True)
    return file


def target_activation_files(tuned: Path) -> Iterator[Path]:
    """The files that `target_activations_of` made of a fine-tuned model."""
    return tuned.parent.glob(f"{glob.escape(tuned.name)}{_BESIDE}*.safetensors")
