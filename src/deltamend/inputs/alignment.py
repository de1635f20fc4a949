"""Show BASE in the layout of FINETUNED, so that tensors of the same name belong together.

Four things may differ between two checkpoints of one model: the names (`renaming`), whether the experts of a
mixture are stacked in one tensor (`expert_stacking`), whether a tied head is stored (`tied_embeddings`), and whether an
adapter repeats layers (`layer_replication`).
"""

from __future__ import annotations

from collections.abc import Sequence

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.inputs.adapters.layer_replication import replicate_layers
from deltamend.inputs.expert_stacking import restack_experts
from deltamend.inputs.renaming import rename_base
from deltamend.inputs.tied_embeddings import compare_head_with_embedding, write_tied_head_once


def align_base(base: Checkpoint, finetuned: Checkpoint, *, rename: Sequence[str] = ()) -> None:
    """Show BASE's tensors under the names and in the shapes that FINETUNED has, where that needs no guess.

    Args:
        base: the checkpoint that is shown in another layout; its notes say what was changed.
        finetuned: shown as it is stored, except for a head that is stored beside the embedding it is tied to: of the two,
            only the embedding is shown.
        rename: rules `OLD=NEW`, the prefix of names in BASE and what it is in FINETUNED; other names are matched without them.

    Raises:
        PairingError: two ways to match the names are equally good, or the experts are stacked in ways that cannot be matched.
        UsageError: `rename` has a rule that is not written like OLD=NEW, or matches no name.
    """
    if finetuned.layer_sources is not None and base.layer_sources is None:
        replicate_layers(base, finetuned.layer_sources)
    rename_base(base, finetuned, rename)
    restack_experts(base, finetuned)
    for checkpoint in (base, finetuned):
        write_tied_head_once(checkpoint)
    compare_head_with_embedding(base, finetuned)
