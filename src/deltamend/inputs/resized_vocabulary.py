"""Which tensors have a row for each token, so that they may have more rows in one model than in the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from deltamend.checkpoint.architecture import INPUT_EMBEDDING, OUTPUT_EMBEDDING, layer_of, leaf_of, module_of
from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.inputs.vocabulary import TokenRows

_TABLE = re.compile(r"(^|_)(emb|embd|embed|embeddings?|tok|tokens?|words?|shared|wte)(_|$)")
_OTHER_TABLE = re.compile(
    r"pos|type|patch|vision|visual|image|audio|speech|time|segment|lang(?!uage_model)|vq|quant|codebook|expert"
)
"""In the names of tables whose rows belong to something else: positions, segments, patches, codes of a sound."""
_LEAST_ROWS = 0.9
"""Of the tokens that a tokenizer numbers, a table may lack some; Gemma 3's lacks that for images."""


class ResizedVocabulary:
    """How the vocabularies of two models were resized, by the shapes of their embeddings; the configs are hints.

    Args:
        base: the tensors of BASE, under the names that they have in FINETUNED.
        finetuned: those of FINETUNED.
        configs: the config.json of the two.
        tokens: the rows of both vocabularies by token; None where nothing is known of them.
    """

    def __init__(
        self,
        base: Mapping[str, StoredTensor],
        finetuned: Mapping[str, StoredTensor],
        configs: tuple[Mapping[str, Any], Mapping[str, Any]],
        tokens: TokenRows | None = None,
    ) -> None:
        self._sizes = tuple(frozenset(vocabulary_sizes(config)) for config in configs)
        # FINETUNED's side first, as everywhere in TokenRows.
        self._named = None if tokens is None else tuple(int(rows.max(initial=-1)) + 1 for rows in tokens.named)
        tables = [
            (tensor, base[name])
            for name, tensor in finetuned.items()
            if name in base and _same_width(tensor, base[name]) and self._is_table(tensor, base[name])
        ]
        self._tables = frozenset(table.name for table, _ in tables)
        self._growths = frozenset(table.shape[0] - own.shape[0] for table, own in tables)
        self._shapes = frozenset((own.shape, table.shape) for table, own in tables)
        self._rows = frozenset((own.shape[0], table.shape[0]) for table, own in tables)

    def holds_tokens(self, finetuned: StoredTensor, base: StoredTensor) -> bool:
        """Whether two tensors have a row for each token, though maybe not for the same number of tokens.

        A table of tokens is known by its name. A head, or its bias, must have grown as a table has, which may have rows of
        its own besides. Any other tensor outside the layers must have the shape of a table, or be the bias of what has, or
        have as many rows as a config.json says.
        """
        if not _same_width(finetuned, base):
            return False
        if finetuned.name in self._tables:
            return True
        rows = base.shape[0], finetuned.shape[0]
        of_head = OUTPUT_EMBEDDING.search(re.sub(r"\.bias$", ".weight", finetuned.name))
        if of_head and (rows[0] == rows[1] or rows[1] - rows[0] in self._growths):
            return True
        if layer_of(finetuned.name) is not None or _OTHER_TABLE.search(finetuned.name):
            return False
        of_bias = len(finetuned.shape) == 1 and leaf_of(finetuned.name) == "bias"
        alike = rows in self._rows if of_bias else (base.shape, finetuned.shape) in self._shapes
        return alike or all(count in sizes for count, sizes in zip(rows, self._sizes, strict=True))

    def _is_table(self, finetuned: StoredTensor, base: StoredTensor) -> bool:
        """Whether two tensors of one width are tables of tokens.

        Those of most models have one of the names of `INPUT_EMBEDDING`. What only sounds like one must also have about as many
        rows as there are tokens, or as many as a config.json says.
        """
        if INPUT_EMBEDDING.search(finetuned.name):
            return True
        module = module_of(finetuned.name)
        if len(finetuned.shape) != 2 or not _TABLE.search(leaf_of(module)) or _OTHER_TABLE.search(module):
            return False
        rows = finetuned.shape[0], base.shape[0]
        if self._named is not None:
            return all(count >= _LEAST_ROWS * named for count, named in zip(rows, self._named, strict=True))
        return any(count in sizes for count, sizes in zip(reversed(rows), self._sizes, strict=True))


def _same_width(finetuned: StoredTensor, base: StoredTensor) -> bool:
    return len(finetuned.shape) == len(base.shape) in (1, 2) and finetuned.shape[1:] == base.shape[1:]


def vocabulary_sizes(config: Mapping[str, Any], depth: int = 3) -> Iterator[int]:
    """Every `vocab_size` of a config.json and of the parts in it, such as `text_config` or `llm_config`."""
    size = config.get("vocab_size")
    if isinstance(size, int):
        yield size
    for part in config.values() if depth else ():
        if isinstance(part, Mapping):
            yield from vocabulary_sizes(part, depth - 1)
