"""Why a matrix of FINETUNED does not come from that of BASE: it is transposed, scaled, its rows are permuted, or BASE is another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.inputs.weight_samples import Floats, Values, sample_of

_LOOKED_AT = 3
"""For so many matrices the cause is looked for."""
_ROWS, _COLUMNS = 16, 128
"""How many rows of FINETUNED are looked for among those of BASE, and by how many of their entries."""
_MOST_ROWS = 20_000
_NEIGHBOURS, _FEW, _LOOKED_AT_FOR_VALUES = 32, 16, 16
"""Among 32 neighbours, weights of 4 bits have at most 16 different values; those of bf16 have about 31, those of fp8 about 20."""
_ALIKE = 0.5
"""From this correlation on, two rows of 128 entries belong together; by chance it is about 0.09."""


@dataclass(frozen=True)
class Matrices:
    """Both sides of a matrix.

    Attributes:
        name: as the user sees it.
        tensors: in BASE and in FINETUNED.
        rows: which of their rows belong together; None for all, in order.
        columns: the first column and the one after the last; None for all.
    """

    name: str
    tensors: tuple[StoredTensor, StoredTensor]
    rows: tuple[Sequence[int], Sequence[int]] | None
    columns: tuple[int, int] | None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of what belongs together."""
        width = self.tensors[0].shape[-1]
        first, last = self.columns or (0, width)
        count = min(tensor.elements // width for tensor in self.tensors) if self.rows is None else len(self.rows[0])
        return count, last - first

    def entries(self, side: int, row: int, column: int, count: int, values: tuple[Values, Values]) -> Floats:
        """Some entries of a row, of BASE (0) or FINETUNED (1)."""
        own = row if self.rows is None else int(self.rows[side][row])
        start = own * self.tensors[side].shape[-1] + (self.columns or (0, 0))[0] + column
        return values[side](self.tensors[side], start, start + count).astype(np.float64)


def cause_of(wrong: Sequence[Matrices], values: tuple[Values, Values], *, everything: bool) -> str:
    """The likely cause, as part of a sentence.

    Args:
        wrong: the matrices that do not come from BASE's.
        values: read the entries of BASE and of FINETUNED.
        everything: whether these are most of the matrices.
    """
    for matrices in wrong[:_LOOKED_AT]:
        found = _scale(matrices, values) or _transposed(matrices, values) or _permuted(matrices, values)
        if found:
            return f"the likely cause: {found}"
    if everything:
        return "the likely cause: BASE is another model, or another training run of the same architecture"
    return "the likely cause: these matrices were set anew in FINETUNED, or are stored in another way than in BASE"


def coarse_note(compared: Sequence[Matrices], values: tuple[Values, Values]) -> str:
    """A sentence where one side has so few different values that it must have been quantised; "" where neither has."""
    chosen = [matrices for matrices in compared if matrices.shape[1] >= _NEIGHBOURS]
    chosen = (
        [chosen[place] for place in np.unique(np.linspace(0, len(chosen) - 1, _LOOKED_AT_FOR_VALUES).astype(int))]
        if chosen
        else []
    )
    if not chosen:
        return ""
    counts = [
        float(np.median([len(np.unique(matrices.entries(side, 0, 0, _NEIGHBOURS, values))) for matrices in chosen]))
        for side in (0, 1)
    ]
    for number, side in enumerate(("BASE", "FINETUNED")):
        own, other = counts[number], counts[1 - number]
        if 2 < own <= _FEW < other:
            return (
                f"{side}'s weights have at most {own:.0f} different values among {_NEIGHBOURS} neighbours, as where they were "
                f"quantised to 4 bits; their rounding counts as part of the update, so give {side} as it was before"
            )
    return ""


def _scale(matrices: Matrices, values: tuple[Values, Values]) -> str:
    sample = sample_of(matrices.tensors, values, matrices.rows, matrices.columns)
    if sample is None or abs(sample.correlation) < 0.9:
        return ""
    return (
        f"{matrices.name!r} is BASE's times {sample.share:.3g}, as where the scales of quantised weights were not applied, or a "
        "norm was folded into the weights"
    )


def _transposed(matrices: Matrices, values: tuple[Values, Values]) -> str:
    """Compare a few entries of each of some rows with a column of BASE."""
    rows, columns = matrices.shape
    if rows != columns:
        return ""
    count = min(columns, _ROWS)
    places = np.unique(np.linspace(0, rows - 1, count).astype(int)).tolist()
    theirs = np.concatenate([matrices.entries(1, row, 0, count, values) for row in places])
    ours = np.array([matrices.entries(0, row, place, 1, values)[0] for place in places for row in range(count)])
    return f"{matrices.name!r} is transposed on one side" if _correlation(ours, theirs) > _ALIKE else ""


def _permuted(matrices: Matrices, values: tuple[Values, Values]) -> str:
    """Look for some rows of FINETUNED among all rows of BASE."""
    rows, columns = matrices.shape
    count = min(columns, _COLUMNS)
    if rows < 2 or rows > _MOST_ROWS or count < _ROWS:
        return ""
    ours = np.stack([matrices.entries(0, row, 0, count, values) for row in range(rows)])
    places = np.unique(np.linspace(0, rows - 1, _ROWS).astype(int)).tolist()
    theirs = np.stack([matrices.entries(1, row, 0, count, values) for row in places])
    with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros is like none
        alike = np.nan_to_num((theirs @ ours.T) / np.outer(_norms(theirs), _norms(ours)))
    best = alike.argmax(axis=1)
    moved = [
        (row, int(own))
        for row, own, like in zip(places, best, alike.max(axis=1), strict=True)
        if like > _ALIKE and own != row
    ]
    if not moved:
        return ""
    row, own = moved[0]
    return (
        f"the rows of {matrices.name!r} are in another order, as where heads or experts are permuted: row {row} of FINETUNED is "
        f"row {own} of BASE"
    )


def _norms(rows: Floats) -> Floats:
    found: Floats = np.sqrt((rows * rows).sum(axis=1))
    return found


def _correlation(x: Floats, y: Floats) -> float:
    both = float((x @ x) * (y @ y))
    return float(x @ y) / both**0.5 if both > 0.0 else 0.0
