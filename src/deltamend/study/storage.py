"""Checkpoints of a study on the disk: the same model in another dtype, and what a model and its adapter give together."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltamend.errors import OutputError
from deltamend.machine.atomic import publish
from deltamend.machine.locks import lock_file
from deltamend.matrices.difference import Difference, diff
from deltamend.study.records import AdapterFacts


def write_in_dtype(source: Path, out: Path, dtype: str) -> None:
    """Write the checkpoint in `source` to `out` with its floating-point tensors rounded to `dtype`, whole or not at all.

    Nothing but the weights and the dtype that its config names is changed. The model is loaded with transformers, as the
    program that trained it would write it in another dtype.

    Raises:
        DeltamendError: it cannot be loaded or written.
    """
    import torch

    from deltamend.language_models.loading import load

    with publish(out, keep=True) as part:
        for file in source.iterdir():
            if file.is_file() and not file.name.endswith((".safetensors", ".safetensors.index.json")):
                shutil.copyfile(file, part / file.name)
        load(source, dtype="float32").model.to(getattr(torch, dtype)).save_pretrained(part)


def adapter_facts(base: Path, adapter: Path, merged: Path) -> AdapterFacts:
    """How far `base` with `adapter`, as this program reads the two, is from the model that its trainer merged.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    gap, update = (diff(other, merged) for other in (f"{base}+{adapter}", base))
    size = _distance(update)
    largest = max((tensor.largest or 0.0 for tensor in gap.tensors), default=0.0)
    return AdapterFacts(distance=_distance(gap) / size if size else 0.0, largest=largest)


def _distance(found: Difference) -> float:
    return math.sqrt(math.fsum((tensor.distance or 0.0) ** 2 for tensor in found.tensors))


@contextmanager
def held_alone(file: Path) -> Iterator[None]:
    """Wait until no other process is in a block that holds `file`."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(file, wait=True):
            yield
    except OSError as error:
        raise OutputError(f"{file}: cannot be locked ({error.strerror}); check the study's folder") from error
