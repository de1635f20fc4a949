"""Group the matrices of a diagnosis by kind or by layer, with the means and the most common verdict of each group."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from deltamend.diagnosis.records import Group, MatrixDiagnosis
from deltamend.diagnosis.verdict import most_of


def grouped(
    matrices: Sequence[MatrixDiagnosis], key: Callable[[MatrixDiagnosis], Hashable]
) -> list[tuple[Group, list[MatrixDiagnosis]]]:
    """Group matrices by a key, in the order in which the keys first appear."""
    parts: dict[Hashable, list[MatrixDiagnosis]] = {}
    for matrix in matrices:
        parts.setdefault(key(matrix), []).append(matrix)
    return [(_group(str(name), part), part) for name, part in parts.items()]


def by_layer(matrices: Sequence[MatrixDiagnosis]) -> list[tuple[Group, list[MatrixDiagnosis]]]:
    """Group the matrices that belong to a layer by the number of the layer, in ascending order."""
    layered = [matrix for matrix in matrices if matrix.layer is not None]
    return sorted(grouped(layered, lambda matrix: matrix.layer), key=lambda pair: int(pair[0].name))


def _group(name: str, matrices: list[MatrixDiagnosis]) -> Group:
    spectra = [(found, found.spectrum) for found in matrices if found.spectrum is not None]
    bulks = [(found, found.bulk) for found in matrices if found.bulk is not None]
    shares = [(found, found.rounding.share) for found in matrices if found.rounding is not None]
    bases = [
        (found.norm**2, (found.norm / found.base.relative_norm) ** 2)
        for found in matrices
        if found.base is not None and found.base.relative_norm
    ]
    return Group(
        name=name,
        matrices=len(matrices),
        entries=sum(found.size for found in matrices),
        rank=_mean((found.size, spectrum.rank / min(found.shape)) for found, spectrum in spectra),
        energy=_mean((found.norm**2, spectrum.energy) for found, spectrum in spectra),
        ks=_mean((found.size, bulk.ks) for found, bulk in bulks),
        rounding=_mean((found.size, min(1.0, share)) for found, share in shares if share is not None),
        relative_norm=(sum(delta for delta, _ in bases) / sum(base for _, base in bases)) ** 0.5 if bases else None,
        verdict=most_of(matrices),
    )


def _mean(weighted: Iterable[tuple[float, float]]) -> float | None:
    """The weighted mean of pairs (weight, number); None if the weights add up to 0."""
    pairs = list(weighted)
    total = sum(weight for weight, _ in pairs)
    return sum(weight * number for weight, number in pairs) / total if total else None
