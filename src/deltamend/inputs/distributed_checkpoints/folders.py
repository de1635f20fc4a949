"""Recognise what kind of training run wrote a folder, and open it accordingly."""

from __future__ import annotations

from pathlib import Path

from deltamend.checkpoint.checkpoint_folder import Checkpoint, open_folder
from deltamend.checkpoint.file_names import INDEX_FILE, TORCH_FILE, TORCH_INDEX_FILE, WEIGHTS_FILE
from deltamend.errors import CheckpointError
from deltamend.inputs.distributed_checkpoints.dcp import METADATA_FILE, open_dcp
from deltamend.inputs.distributed_checkpoints.deepspeed import deepspeed_folder, open_deepspeed

_USUAL = (WEIGHTS_FILE, INDEX_FILE, TORCH_FILE, TORCH_INDEX_FILE)
_OF_MEGATRON = ("latest_checkpointed_iteration.txt", "common.pt", "mp_rank_00/model_optim_rng.pt")
_OPTIMISER_PREFIX = "optimizer"


def open_any_folder(path: Path) -> Checkpoint:
    """Open a folder of weights as they are stored, or what a training run wrote in parts.

    A folder of torch.distributed.checkpoint or of DeepSpeed may also be the one above, as Trainer and accelerate write it.

    Raises:
        CheckpointError: it cannot be read, or several models lie in it, or Megatron wrote it.
    """
    if any((path / file).exists() for file in _USUAL) or not path.is_dir():
        return open_folder(path)
    if any((path / file).exists() for file in _OF_MEGATRON):
        raise CheckpointError(
            f"{path}: a Megatron checkpoint, whose weights are fused and named in Megatron's own way; convert it with Megatron "
            "Bridge, AutoBridge.from_hf_pretrained(MODEL).export_ckpt(THIS_FOLDER, OUT), and give OUT"
        )
    folders = [folder for folder in (path, *_subfolders(path)) if (folder / METADATA_FILE).is_file()]
    models = [folder for folder in folders if not folder.name.startswith(_OPTIMISER_PREFIX)]
    if len(models) > 1:
        names = ", ".join(sorted(folder.name for folder in models[:4]))
        raise CheckpointError(f"{path}: holds several distributed checkpoints ({names}); give one of them")
    if models:
        return open_dcp(models[0])
    if (found := deepspeed_folder(path)) is not None:
        return open_deepspeed(found)
    return open_folder(path)


def _subfolders(path: Path) -> list[Path]:
    try:
        return sorted(folder for folder in path.iterdir() if folder.is_dir())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be listed ({error.strerror}); check its permissions") from error
