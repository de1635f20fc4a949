"""What is refused about two models as a whole: weights that were saved unassembled, and too many matrices without a partner."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.errors import CheckpointError, PairingError, option

UNPAIRED_SHARE = 0.05
"""More than this share of FINETUNED's matrices, by number or by entries, without a partner is an error."""
_NEW_HEADS = 2
"""So many matrices without a partner are no sign of names that do not match: a new head has one matrix or two."""
_NAMED = 3
_FACTOR = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.|$)")
"""In the names of what PEFT adds to a model."""


def refuse_unassembled(base: Mapping[str, StoredTensor], finetuned: Mapping[str, StoredTensor]) -> None:
    """Refuse a side whose tensors are the empty placeholders that ZeRO-3 leaves in the memory of each process.

    Raises:
        CheckpointError: a tensor of one side is empty, and that of the other side is not; or most of a side's tensors are.
    """
    for side, tensors, others in (("FINETUNED", finetuned, base), ("BASE", base, finetuned)):
        empty = [name for name, tensor in tensors.items() if tensor.elements == 0]
        found = next((name for name in empty if name in others and others[name].elements), None)
        if found is None and 2 * len(empty) > len(tensors):
            found = empty[0]
        if found is not None:
            raise CheckpointError(
                f"{side} was saved unassembled: its tensor {found!r} has the shape {list(tensors[found].shape)}, and "
                f"{len(empty)} of {len(tensors)} tensors are empty, as DeepSpeed's ZeRO-3 leaves them in each process; assemble "
                "the weights with the zero_to_fp32.py of the checkpoint, or save them with "
                "stage3_gather_16bit_weights_on_model_save"
            )


def refuse_unpaired(unpaired: Sequence[StoredTensor], matrices: Collection[StoredTensor]) -> None:
    """Refuse two models of which much cannot be repaired, because it has no partner.

    Args:
        unpaired: the matrices of FINETUNED that would be repaired, and that BASE does not have.
        matrices: all matrices of FINETUNED that would be repaired.

    Raises:
        PairingError: they are more than `UNPAIRED_SHARE` of the matrices by number, or of their entries; or they are the
            factors of an adapter.
    """
    factor = next((tensor.name for tensor in unpaired if _FACTOR.search(tensor.name)), None)
    if factor is not None:
        raise PairingError(
            f"FINETUNED holds the factors of a LoRA adapter beside its weights, not merged into them ({factor!r}); save it after "
            f"PEFT's merge_and_unload, or give the model and the folder of the adapter as MODEL+ADAPTER; "
            f"{option('allow_unpaired', 'True')} repairs the weights without the adapter"
        )
    entries, total = _entries(unpaired), _entries(matrices)
    many = len(unpaired) > max(_NEW_HEADS, UNPAIRED_SHARE * len(matrices))
    if not many and entries <= UNPAIRED_SHARE * total:
        return
    named = ", ".join(repr(tensor.name) for tensor in unpaired[:_NAMED])
    more = ", …" if len(unpaired) > _NAMED else ""
    raise PairingError(
        f"{len(unpaired)} of {len(matrices)} matrices of FINETUNED ({entries / total:.1%} of their entries) have no partner in "
        f"BASE and would not be repaired: {named}{more}; give {option('rename', 'OLD=NEW')} where BASE has them under other "
        f"names (`deltamend inspect` lists them), {option('exclude', 'REGEX')} for what is new in FINETUNED, or "
        f"{option('allow_unpaired', 'True')} to leave all of them as fine-tuned"
    )


def differing_configs(configs: tuple[Mapping[str, Any], Mapping[str, Any]]) -> str:
    """How the kinds of model that the two config.json name differ, as part of an error; nothing where they do not."""
    for key in ("model_type", "architectures"):
        ours, theirs = (config.get(key) for config in configs)
        if ours is not None and theirs is not None and ours != theirs:
            return f"; config.json: {key} is {ours!a} in BASE and {theirs!a} in FINETUNED"
    return ""


def _entries(tensors: Iterable[StoredTensor]) -> int:
    return sum(tensor.elements for tensor in tensors)
