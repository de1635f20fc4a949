"""How Δ and W_ft lie to the leading singular directions of the base: overlap, intruder dimensions and relative sizes."""

from __future__ import annotations

import math

import numpy as np

from deltamend.diagnosis.records import AgainstBase
from deltamend.spectrum.blocks import Blocks
from deltamend.spectrum.decompositions import Workspace
from deltamend.spectrum.kept_subspace import SpectralFilter
from deltamend.spectrum.subspace import Leading, leading_vectors

_TOP_SHARE = 10
"""One in this many directions of the base belongs to its top subspace."""
_LEAST_COMPARED = 50
"""At least this many directions of the base are compared with those of W_ft."""
EXAMINED = 10
"""How many leading directions of W_ft are examined."""
_RESEMBLES = 0.5
"""A direction of W_ft with a smaller cosine to every leading direction of the base is an intruder dimension."""


def directions_of_top_subspace(shape: tuple[int, int]) -> int:
    """How many leading directions make up the base's top subspace: a tenth of all, at least one."""
    return max(1, min(shape) // _TOP_SHARE)


def directions_of_base(shape: tuple[int, int]) -> int:
    """How many leading directions of the base are needed: those of the top subspace, and enough to find intruders."""
    return max(min(shape) // _TOP_SHARE, _LEAST_COMPARED)


def leading_directions(blocks: Blocks, count: int, workspace: Workspace) -> Leading | None:
    """The leading singular values and vectors on the shorter side of a matrix; None if the matrix is zero."""
    return leading_vectors(blocks, min(count, min(blocks.shape)), workspace)


def against_base_record(
    found: SpectralFilter, inside: float, base: Leading | None, finetuned: Leading | None
) -> AgainstBase:
    """Compare Δ and W_ft with the base.

    Args:
        found: the filter of Δ.
        inside: ‖Δ‖² inside the base's top subspace; it is used if the filter keeps all of Δ and so has no basis.
        base: the leading directions of W_base; None if it is zero.
        finetuned: the leading directions of W_ft; None if it is zero.
    """
    p = min(found.shape)
    directions = directions_of_top_subspace(found.shape)
    if base is not None and found.basis is not None:
        inside = float(np.sum(((base.vectors[:, :directions].T @ found.basis) * found.singular_values) ** 2))
    intruders = None
    if base is not None and finetuned is not None:
        cosines = np.abs(base.vectors.T @ finetuned.vectors).max(axis=0)
        intruders = int(np.count_nonzero(cosines < _RESEMBLES))
    return AgainstBase(
        relative_norm=None if base is None else math.sqrt(found.energy) / base.norm,
        relative_largest=None if base is None else found.largest / float(base.values[0]),
        directions=directions,
        overlap=None if base is None or found.kept_energy == 0.0 else inside / found.kept_energy,
        by_chance=directions / p,
        examined=min(EXAMINED, p),
        intruders=intruders,
    )
