"""Checks of a calibration: that the output overwrites no input, and that no tensor holds NaN or infinity."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltamend.errors import CheckpointError, OutputError, option

if TYPE_CHECKING:
    import torch


def check_file(out: Path, models: Sequence[Path], texts: Path | None, *, overwrite: bool) -> None:
    """Refuse an output file that would overwrite an input or anything else that exists.

    Raises:
        OutputError: `out` is the file of texts, lies in the folder of a model, or is the target of a link there; it exists,
            and is not a file or may not be replaced; or its folder does not exist.
    """
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out}: its folder does not exist; make it, or give another name")
    # A link is replaced, not followed; its target is looked at too, as whoever gives it means that file.
    places = {Path(os.path.realpath(out)), Path(os.path.realpath(out.parent), out.name)}
    if texts is not None and Path(os.path.realpath(texts)) in places:
        raise OutputError(f"{out}: is the file of texts; give another name")
    for model in models:
        folder = Path(os.path.realpath(model))
        # The hub's cache keeps weights outside the folder, which holds links to them.
        files = {Path(os.path.realpath(file)) for file in folder.iterdir()} if folder.is_dir() else set()
        if places & files or any(place.is_relative_to(folder) for place in places):
            raise OutputError(f"{out}: belongs to the model {model}; give a file outside it")
    if os.path.lexists(out):
        if not out.is_file():
            raise OutputError(f"{out}: exists and is not a file; give another name")
        if not overwrite:
            raise OutputError(f"{out}: exists; give another name, or {option('overwrite', 'True')} to replace it")


def refuse_not_finite(tensors: Iterable[tuple[str, torch.Tensor]], what: str) -> None:
    """Refuse tensors that hold NaN or infinity.

    Args:
        tensors: by name.
        what: the beginning of the error, such as "MODEL: the weights of", which the name of the tensor follows.

    Raises:
        CheckpointError: naming the first tensor that holds one.
    """
    for name, tensor in tensors:
        if not tensor.isfinite().all():
            raise CheckpointError(f"{what} {name!r} hold NaN or Inf; give an undamaged checkpoint")
