"""Open whatever a user names as a model: a folder, an id on the hub, a GGUF file, or one of these with an adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.checkpoint.file_names import ADAPTER_CONFIG_FILE, CONFIG_FILE, WEIGHTS_FILE
from deltamend.checkpoint.manifest import ParentRecord
from deltamend.checkpoint.quantised import refuse_quantised
from deltamend.errors import CheckpointError
from deltamend.inputs.adapters.folders import find_adapter
from deltamend.inputs.adapters.lora import add_adapter
from deltamend.inputs.alignment import align_base
from deltamend.inputs.distributed_checkpoints.folders import open_any_folder
from deltamend.inputs.hub import fetch, id_and_subfolder, is_hub_id
from deltamend.inputs.model_layout import layout_of
from deltamend.inputs.pair_checks import differing_configs
from deltamend.inputs.pairing import Pairing, pair_tensors
from deltamend.inputs.parentage import parent_of
from deltamend.inputs.quantised_formats.presentation import present_dequantised
from deltamend.inputs.stale_quantization import drop_stale_quantization
from deltamend.inputs.vocabulary import token_rows


def open_checkpoint(model: str | os.PathLike[str]) -> Checkpoint:
    """Open a model without reading its weights.

    Args:
        model: a folder with config.json and model.safetensors, pytorch_model.bin, or the shards an index names; a hub id
            `org/name` or `org/name@revision`; a GGUF file; or any of them followed by `+` and the folder or id of a LoRA
            adapter, and of its subfolder where it lies in one.

    Returns:
        The open checkpoint: a context manager that closes its files, with names, shapes and dtypes of all tensors.

    Raises:
        CheckpointError: something is missing, truncated, corrupt, quantised in a way that cannot be undone, or points
            outside its folder.

    Source: the file formats of safetensors, PyTorch, GGUF and PEFT.
    """
    text = os.fspath(model)
    if not text:
        raise CheckpointError("the name of a model is empty; give the folder of a checkpoint")
    parts = model_and_adapter(text)
    if parts is None:
        return _open_model(text)
    name, adapter = parts
    inner = model_and_adapter(name)
    if inner is not None and all(map(_is_there, inner)):
        raise CheckpointError(f"{text}: names several adapters; give one, or a model that the others are merged into")
    checkpoint = _open_model(name)
    try:
        folder, said = find_adapter(_adapter_folder(adapter))
        checkpoint.notes += tuple(said)
        add_adapter(checkpoint, folder)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint


GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True)
class OpenPair:
    """Both models, and which tensors belong together; a context manager that closes them.

    Attributes:
        base: the model that fine-tuning started from, shown in the layout of FINETUNED.
        finetuned: its descendant.
        pairing: what is to be done to each tensor of FINETUNED.
        parent: whether BASE is the parent of FINETUNED, by a sample of the weights.
        called: what each model was called when it was opened, base first.
        selection: the options of `open_pair` that it was opened with, by name.
    """

    base: Checkpoint
    finetuned: Checkpoint
    pairing: Pairing
    parent: ParentRecord
    called: tuple[str, str]
    selection: Mapping[str, str | tuple[str, ...] | bool | None]

    @property
    def names(self) -> tuple[str, str]:
        """The last part of what each model was called, such as a folder's own name."""
        return Path(self.called[0]).name, Path(self.called[1]).name

    @property
    def notes(self) -> tuple[str, ...]:
        """How the two are read where it is not simply as stored, a sentence each."""
        return (*self.base.notes, *self.finetuned.notes)

    def close(self) -> None:
        """Close both."""
        self.base.close()
        self.finetuned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_pair(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    *,
    include: str | None = None,
    exclude: str | None = None,
    rename: str | Sequence[str] | None = None,
    split_fused: bool = False,
    allow_unpaired: bool = False,
    allow_unrelated: bool = False,
) -> OpenPair:
    """Open both models, show BASE in the layout of FINETUNED, pair their tensors, and check that BASE is the parent.

    Args:
        base: the checkpoint that fine-tuning started from, as `open_checkpoint` takes it.
        finetuned: its descendant, likewise.
        include: a regular expression; only matrices whose name it is found in are used.
        exclude: a regular expression; matrices whose name it is found in are left as fine-tuned.
        rename: `OLD=NEW`, or several of these: tensor names that begin with OLD in BASE begin with NEW in FINETUNED. Names
            for which no rule is given are matched by how they end.
        split_fused: whether query, key and value, or gate and up, that are stored as one matrix are treated one by one.
        allow_unpaired: go on where many matrices of FINETUNED have no partner in BASE, and leave them as fine-tuned.
        allow_unrelated: go on where a matrix of FINETUNED does not come from that of BASE.

    Returns:
        The pair: a context manager that closes both checkpoints; `diagnose`, `compare` and `plan_repair` take it.

    Raises:
        CheckpointError: an input cannot be read, or is quantised in a way that cannot be undone.
        PairingError: the two do not belong together, or their names match in several ways.
        UsageError: a regular expression or `rename` is invalid.

    Source: ours.
    """
    with ExitStack() as opened:
        ours = opened.enter_context(open_checkpoint(base))
        theirs = opened.enter_context(open_checkpoint(finetuned))
        rules = (rename,) if isinstance(rename, str) else tuple(rename or ())
        align_base(ours, theirs, rename=rules)
        shapes = {name: tensor.shape for name, tensor in theirs.tensors.items()}
        pairing = pair_tensors(
            ours.tensors,
            theirs.tensors,
            (ours.config, theirs.config),
            include=include,
            exclude=exclude,
            tokens=token_rows(ours, theirs),
            split_fused=split_fused,
            layout=layout_of(theirs.config, shapes),
            allow_unpaired=allow_unpaired,
        )
        if differing := differing_configs((ours.config, theirs.config)):
            theirs.notes += (
                f"{differing.removeprefix('; ')}; names and shapes agree, so they are taken as one family",
            )
        same_model = theirs.adapter is not None and ours.adapter is None and ours.folder.samefile(theirs.folder)
        if same_model:
            ranks = {name: theirs.update_ranks.get(name) for name in theirs.tensors}
            pairs = tuple(
                replace(
                    pair,
                    update_rank=ranks[pair.name],
                    # What the adapter brings whole is not quantised, unlike the tensor whose place it takes.
                    same_source=pair.base is not None and pair.base.packing == pair.finetuned.packing,
                )
                for pair in pairing.pairs
            )
            pairing = replace(pairing, pairs=pairs)
        # An adapter to BASE itself comes from BASE, however large its update is.
        parent = parent_of(pairing.pairs, (ours.values, theirs.values), allow_unrelated=allow_unrelated or same_model)
        opened.pop_all()
    selection: dict[str, str | tuple[str, ...] | bool | None] = {
        "include": include,
        "exclude": exclude,
        "rename": rules,
        "split_fused": split_fused,
        "allow_unpaired": allow_unpaired,
        "allow_unrelated": allow_unrelated,
    }
    return OpenPair(ours, theirs, pairing, parent, (os.fspath(base), os.fspath(finetuned)), selection)


def model_and_adapter(text: str) -> tuple[str, str] | None:
    """The two parts of `MODEL+ADAPTER`; None for a model alone. Folders may have a + in their names."""
    if "+" not in text or _is_there(text):
        return None
    places = [number for number, letter in enumerate(text) if letter == "+"]
    splits = [(text[:place], text[place + 1 :]) for place in reversed(places)]
    return next((split for split in splits if all(map(_is_there, split))), splits[0])


def paths_of(model: str | os.PathLike[str]) -> list[Path]:
    """The files and folders on this machine that the name of a model stands for; a model of the hub is fetched.

    Raises:
        CheckpointError: there is no such model.
    """
    text = os.fspath(model)
    name, adapter = model_and_adapter(text) or (text, "")
    here = [Path(part) for part in (name, adapter) if _is_there(part)]
    if not _is_there(name):
        here.append(model_folder(name))
    if adapter and not _is_there(adapter):
        here.append(_adapter_folder(adapter))
    return here


def _adapter_folder(text: str) -> Path:
    """The folder of an adapter on this machine, which may be a subfolder of a model on the hub."""
    inside = None if _is_there(text) else id_and_subfolder(text)
    if inside is None:
        return model_folder(text)
    folder = fetch(inside[0]) / inside[1]
    if not folder.is_dir():
        raise CheckpointError(f"{text}: {inside[0]} on the hub has no folder {inside[1]!r}; check its name")
    return folder


def _is_there(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except OSError:  # a name that is too long
        return False


def model_folder(text: str) -> Path:
    """The folder of a model on this machine: `text` itself, where its hub id was downloaded to, or its GGUF file unpacked.

    Raises:
        CheckpointError: there is no such folder, and it is no hub id or cannot be fetched.
    """
    path = Path(text)
    if not _is_there(text) and not is_hub_id(text):
        _refuse_closed(path)
        raise CheckpointError(
            f"{text}: no such folder; give the folder of a checkpoint with config.json and {WEIGHTS_FILE}"
        )
    if path.is_dir():
        return path
    if path.is_file() and path.suffix == GGUF_SUFFIX:
        from deltamend.inputs.gguf_file import unpacked  # torch and transformers

        return unpacked(path)
    if path.exists():
        raise CheckpointError(
            f"{text}: is not a folder; give the folder of a checkpoint with config.json and {WEIGHTS_FILE}"
        )
    return fetch(text)


def _refuse_closed(path: Path) -> None:
    """Refuse a path inside a folder that this user may not enter, which looks as if nothing were there.

    Raises:
        CheckpointError: it is.
    """
    try:
        path.stat()
    except PermissionError as error:
        raise CheckpointError(
            f"{path}: cannot be reached, as this user may not enter a folder above it; change the rights of that folder"
        ) from error
    except OSError:
        return


def _open_model(text: str) -> Checkpoint:
    folder = model_folder(text)
    if not (folder / CONFIG_FILE).exists() and (folder / ADAPTER_CONFIG_FILE).exists():
        raise CheckpointError(
            f"{folder}: holds an adapter and no model; give the model it was trained on and the adapter as MODEL+ADAPTER"
        )
    checkpoint = open_any_folder(folder)
    try:
        if text.endswith(GGUF_SUFFIX):
            checkpoint.source = Path(text)
            checkpoint.notes += (
                f"{Path(text).name}: read from a GGUF file; what quantisation changed in it counts as part of Δ",
            )
        present_dequantised(checkpoint)
        drop_stale_quantization(checkpoint)
        refuse_quantised(checkpoint.tensors.values(), folder)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint
