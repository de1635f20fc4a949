"""A `quantization_config` that was left in config.json although the weights are stored in full precision."""

from __future__ import annotations

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.checkpoint.quantised import is_packed

_KEY = "quantization_config"


def drop_stale_quantization(checkpoint: Checkpoint) -> None:
    """Ignore `quantization_config` where no tensor is quantised, as after QLoRA was merged into full-precision weights.

    A loader would quantise the weights again, so the config of the output does not have it.
    """
    if checkpoint.config.get(_KEY) is None or any(map(is_packed, checkpoint.tensors.values())):
        return
    checkpoint.alter_config({key: value for key, value in checkpoint.config.items() if key != _KEY})
    checkpoint.notes += (
        f"{checkpoint.folder.name}: config.json has a {_KEY}, but no tensor is quantised; it is ignored, and left out",
    )
