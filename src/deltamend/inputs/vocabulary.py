"""Which row of an embedding belongs to which token, in two models whose tokenizers may differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.inputs.tokenizer_files import TOKENIZER_FILES, read_token_table

Rows = np.ndarray[Any, np.dtype[np.int64]]


class SharedRows(NamedTuple):
    """Consecutive rows that hold the same tokens: `length` rows from row `finetuned` on and from row `base` on."""

    finetuned: int
    base: int
    length: int


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The rows of two vocabularies, by the tokens that their tokenizers name.

    Attributes:
        shared: shape (tokens, 2): the rows in FINETUNED and in BASE of each token that both have.
        named: the rows that a tokenizer names in FINETUNED, and those in BASE.
    """

    shared: Rows
    named: tuple[Rows, Rows]

    def runs(self, rows: tuple[int, int]) -> tuple[SharedRows, ...] | None:
        """Which rows of two embeddings belong together.

        Rows of one token do. A row that neither tokenizer names is padding on both sides, and belongs to that of the same
        number. Every other row has no partner: its token is new in FINETUNED, or BASE's token of this number is gone.

        Args:
            rows: how many rows the embedding has in FINETUNED and in BASE; it may have more or fewer than tokens.

        Returns:
            None where every row has the partner of its own number, as far as both have it.
        """
        count = min(rows)
        partner = np.full(rows[0], -1, np.int64)
        free = np.ones(count, bool)
        for named in self.named:
            free[named[named < count]] = False
        partner[:count][free] = np.flatnonzero(free)
        theirs, ours = self.shared[(self.shared[:, 0] < rows[0]) & (self.shared[:, 1] < rows[1])].T
        partner[theirs] = ours
        if np.array_equal(partner[:count], np.arange(count)) and (partner[count:] < 0).all():
            return None
        own = np.flatnonzero(partner >= 0)
        broken = np.flatnonzero((np.diff(own) != 1) | (np.diff(partner[own]) != 1)) + 1
        return tuple(
            SharedRows(int(run[0]), int(partner[run[0]]), len(run)) for run in np.split(own, broken) if len(run)
        )


def token_rows(base: Checkpoint, finetuned: Checkpoint) -> TokenRows | None:
    """Match the rows of two vocabularies by token; a note of FINETUNED says so where that is not possible.

    Args:
        base: its tokenizer is that of the last of its folders that has one: an adapter's comes before the model's.
        finetuned: likewise.

    Returns:
        None where rows are matched by their numbers: both sides have the same files, a side lists no tokens, or the two list
        them in different formats and number most of them differently, as some models do that shift sentencepiece's numbers.

    Raises:
        CheckpointError: a file of a tokenizer cannot be read.
    """
    folders = [_folders_of_tokenizers(checkpoint) for checkpoint in (base, finetuned)]
    if folders[0] and folders[1] and _same_files(folders[0][0], folders[1][0]):
        return None
    ours, theirs = (next(filter(None, map(read_token_table, own)), None) for own in folders)
    if ours is None or theirs is None:
        if ours is not theirs:
            _note_numbers(
                finetuned, f"only {'FINETUNED' if ours is None else 'BASE'} has a tokenizer that lists its tokens"
            )
        return None
    found = rows_by_token(ours.rows, theirs.rows)
    moved = np.count_nonzero(found.shared[:, 0] != found.shared[:, 1])
    if ours.file != theirs.file and 2 * moved > len(found.shared):
        _note_numbers(
            finetuned, f"BASE's {ours.file} and FINETUNED's {theirs.file} number most of their tokens differently"
        )
        return None
    return found


def _note_numbers(checkpoint: Checkpoint, reason: str) -> None:
    checkpoint.notes += (f"{reason}, so rows of the vocabulary are matched by their numbers",)


def rows_by_token(base: Mapping[str, int], finetuned: Mapping[str, int]) -> TokenRows:
    """Match the rows of two vocabularies, given the row of each token."""
    shared = [(row, base[token]) for token, row in finetuned.items() if token in base]
    named = (np.array(sorted({*table.values()}), np.int64) for table in (finetuned, base))
    return TokenRows(np.array(shared, np.int64).reshape(-1, 2), (next(named), next(named)))


def _folders_of_tokenizers(checkpoint: Checkpoint) -> list[Path]:
    return [
        folder
        for folder in reversed(checkpoint.folders)
        if folder.is_dir() and any((folder / name).is_file() for name in TOKENIZER_FILES)
    ]


def _same_files(one: Path, other: Path) -> bool:
    """Whether two folders have the same tokenizer files, byte for byte."""
    for name in TOKENIZER_FILES:
        paths = one / name, other / name
        there = [path.is_file() for path in paths]
        if there[0] != there[1]:
            return False
        if there[0] and (paths[0].stat().st_size != paths[1].stat().st_size or not _same_bytes(*paths)):
            return False
    return True


def _same_bytes(one: Path, other: Path, size: int = 1 << 20) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(size):
            if block != second.read(size):
                return False
    return True
