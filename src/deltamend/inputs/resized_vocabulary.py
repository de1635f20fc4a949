"""Which tensors have a row for each token, so that they may have more rows in one model than in the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from deltamend.checkpoint.architecture import INPUT_EMBEDDING, OUTPUT_EMBEDDING, layer_of
from deltamend.checkpoint.checkpoint_folder import StoredTensor


class ResizedVocabulary:
    """How the vocabularies of two models were resized, by the shapes of their embeddings; the configs are hints.

    Args:
        base: the tensors of BASE, under the names that they have in FINETUNED.
        finetuned: those of FINETUNED.
        configs: the config.json of the two.
    """

    def __init__(
        self,
        base: Mapping[str, StoredTensor],
        finetuned: Mapping[str, StoredTensor],
        configs: tuple[Mapping[str, Any], Mapping[str, Any]],
    ) -> None:
        self._sizes = tuple(frozenset(_vocabulary_sizes(config)) for config in configs)
        self._growths = {
            tensor.shape[0] - base[name].shape[0]
            for name, tensor in finetuned.items()
            if name in base and INPUT_EMBEDDING.search(name) and _same_width(tensor, base[name])
        }

    def holds_tokens(self, finetuned: StoredTensor, base: StoredTensor) -> bool:
        """Whether two tensors have a row for each token, though maybe not for the same number of tokens.

        A token embedding is known by its name. A head, or its bias, must have grown as an embedding has, which may have rows
        of its own besides; any other tensor outside the layers must have as many rows as a config.json says.
        """
        if not _same_width(finetuned, base):
            return False
        if INPUT_EMBEDDING.search(finetuned.name):
            return True
        rows = base.shape[0], finetuned.shape[0]
        of_head = OUTPUT_EMBEDDING.search(re.sub(r"\.bias$", ".weight", finetuned.name))
        if of_head and (rows[0] == rows[1] or rows[1] - rows[0] in self._growths):
            return True
        told = all(count in sizes for count, sizes in zip(rows, self._sizes, strict=True))
        return told and layer_of(finetuned.name) is None


def _same_width(finetuned: StoredTensor, base: StoredTensor) -> bool:
    return len(finetuned.shape) == len(base.shape) in (1, 2) and finetuned.shape[1:] == base.shape[1:]


def _vocabulary_sizes(config: Mapping[str, Any], depth: int = 3) -> Iterator[int]:
    """Every `vocab_size` of a config.json and of the parts in it, such as `text_config` or `llm_config`."""
    size = config.get("vocab_size")
    if isinstance(size, int):
        yield size
    for part in config.values() if depth else ():
        if isinstance(part, Mapping):
            yield from _vocabulary_sizes(part, depth - 1)
