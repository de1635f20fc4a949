"""Show BASE in the layout of FINETUNED, so that tensors of the same name belong together.

Three things may differ between two checkpoints of one model: the prefix of the names (`renaming`), whether the experts of a
mixture are stacked in one tensor (`expert_stacking`), and whether a tied head is stored (`tied_embeddings`).
"""

from __future__ import annotations

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.inputs.expert_stacking import restack_experts
from deltamend.inputs.renaming import rename_base
from deltamend.inputs.tied_embeddings import compare_head_with_embedding, write_tied_head_once


def align_base(base: Checkpoint, finetuned: Checkpoint, *, rename: str | None = None) -> None:
    """Let BASE show its tensors under the names and in the shapes FINETUNED has, where that needs no guess.

    Args:
        base: what is shown otherwise; its notes say how.
        finetuned: stays as it is, but for a head that is stored beside the embedding it is tied to: it is written once.
        rename: `OLD=NEW`, prefixes of names in BASE and in FINETUNED; none finds a pair of known prefixes where no matrix
            has the same name on both sides.

    Raises:
        PairingError: two ways to match the names are equally good, or experts are stacked in ways that cannot be matched.
        UsageError: `rename` is not written like OLD=NEW, or fits no name.
    """
    rename_base(base, finetuned, rename)
    restack_experts(base, finetuned)
    for checkpoint in (base, finetuned):
        write_tied_head_once(checkpoint)
    compare_head_with_embedding(base, finetuned)
