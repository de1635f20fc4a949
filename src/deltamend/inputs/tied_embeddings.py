"""Heads that share their matrix with the token embedding: written once, and compared with the embedding where only BASE ties them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deltamend.checkpoint.architecture import INPUT_EMBEDDING, OUTPUT_EMBEDDING, has_head
from deltamend.checkpoint.checkpoint_folder import Checkpoint, StoredTensor
from deltamend.inputs.computed_tensors import EntrySpan


def write_tied_head_once(checkpoint: Checkpoint) -> None:
    """Leave out a head whose bytes are those of the embedding it is tied to; loaders tie it again.

    If both were repaired by themselves, they might come out differently, and it would depend on the version of the loader
    which of them it takes. Where config.json does not say whether they are tied, it is made to say so.
    """
    said = _says_tied(checkpoint.config)
    embedding = next((tensor for name, tensor in checkpoint.tensors.items() if INPUT_EMBEDDING.search(name)), None)
    head = next((tensor for name, tensor in checkpoint.tensors.items() if OUTPUT_EMBEDDING.search(name)), None)
    if said is False or embedding is None or head is None or not _same_values(checkpoint, embedding, head):
        return
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name != head.name}
    note = f"{head.name!r} is stored beside {embedding.name!r} and equals it; it is written once, and tied"
    checkpoint.present(tensors, notes=[note])
    if said is None:
        checkpoint.alter_config({**checkpoint.config, "tie_word_embeddings": True})


def compare_head_with_embedding(base: Checkpoint, finetuned: Checkpoint) -> None:
    """Pair a head that only FINETUNED stores with the embedding of BASE, where BASE ties its head to that embedding."""
    found = next((tensor for name, tensor in base.tensors.items() if INPUT_EMBEDDING.search(name)), None)
    tied = found if _is_tied(base) else None
    for name, head in finetuned.tensors.items():
        if name in base.tensors:
            continue
        embedding = base.tensors.get(finetuned.untied.get(name, "")) or (
            tied if OUTPUT_EMBEDDING.search(name) else None
        )
        if embedding is not None and head.shape[1:] == embedding.shape[1:]:
            shown = replace(embedding, name=name, origin=embedding.own_name)
            computed = {shown: EntrySpan(base, embedding)} if base.is_computed(embedding) else {}
            note = f"{name!r} is compared with {embedding.name!r} of BASE, which is tied to it"
            base.present({**base.tensors, name: shown}, computed, [note])
            return


def _same_values(checkpoint: Checkpoint, first: StoredTensor, second: StoredTensor, size: int = 1 << 20) -> bool:
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    spans = ((start, min(first.elements, start + size)) for start in range(0, first.elements, size))
    return all(
        checkpoint.values(first, *span).tobytes() == checkpoint.values(second, *span).tobytes() for span in spans
    )


def _is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the head is tied to the embedding: config.json says so, or does not say and no head is stored."""
    said = _says_tied(checkpoint.config)
    if said is None:
        return has_head(checkpoint.config) and not any(map(OUTPUT_EMBEDDING.search, checkpoint.tensors))
    return said


def _says_tied(config: Mapping[str, object]) -> bool | None:
    """`tie_word_embeddings` of config.json or of its text part; None where neither says."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        said = part.get("tie_word_embeddings")
        if isinstance(said, bool):
            return said
    return None
