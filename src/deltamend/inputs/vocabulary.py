"""Which row of an embedding belongs to which token, in two models whose tokenizers may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deltamend.checkpoint.json_file import read_json

_TOKENIZER_FILE = "tokenizer.json"


class SharedRows(NamedTuple):
    """Consecutive rows that hold the same tokens: `length` rows from row `finetuned` on and from row `base` on."""

    finetuned: int
    base: int
    length: int


def shared_rows(base: Sequence[Path], finetuned: Sequence[Path]) -> tuple[SharedRows, ...] | None:
    """The rows that hold the same tokens, by both tokenizer.json; None where every token of BASE has the same row in FINETUNED.

    Args:
        base: folders of BASE; the tokenizer is that of the first that has a tokenizer.json.
        finetuned: folders of FINETUNED, likewise.

    Raises:
        CheckpointError: a tokenizer.json cannot be read.
    """
    ours, theirs = (_ids(folders) for folders in (base, finetuned))
    if not ours or not theirs:
        return None
    named = set(theirs.values())
    if all(theirs[token] == row if token in theirs else row not in named for token, row in ours.items()):
        return None
    runs: list[SharedRows] = []
    for token, row in sorted(theirs.items(), key=lambda item: item[1]):
        own = ours.get(token)
        if own is None:
            continue
        last = runs[-1] if runs else None
        if last is not None and (row, own) == (last.finetuned + last.length, last.base + last.length):
            runs[-1] = last._replace(length=last.length + 1)
        else:
            runs.append(SharedRows(row, own, 1))
    return tuple(runs)


def _ids(folders: Sequence[Path]) -> dict[str, int]:
    """The row of each token; empty where there is no tokenizer.json, or one that does not list a vocabulary."""
    path = next((path for folder in folders if (path := folder / _TOKENIZER_FILE).is_file()), None)
    if path is None:
        return {}
    content = read_json(path)
    model = content.get("model")
    vocabulary: Any = model.get("vocab") if isinstance(model, dict) else None
    found: dict[str, int] = {}
    if isinstance(vocabulary, Mapping):
        found = {token: row for token, row in vocabulary.items() if isinstance(row, int)}
    elif isinstance(vocabulary, list):  # Unigram: pairs of token and score
        tokens = [entry[0] if isinstance(entry, list) and entry else None for entry in vocabulary]
        found = {token: row for row, token in enumerate(tokens) if isinstance(token, str)}
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("content"), str) and isinstance(token.get("id"), int):
            found[token["content"]] = token["id"]
    return {token: row for token, row in found.items() if row >= 0 and not isinstance(row, bool)}
