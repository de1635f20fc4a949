"""Is BASE the parent? A sample of every matrix says whether FINETUNED holds BASE's weights, before anything is repaired."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from deltamend.checkpoint.architecture import INPUT_EMBEDDING, OUTPUT_EMBEDDING
from deltamend.checkpoint.manifest import Parent, ParentRecord
from deltamend.errors import PairingError, option
from deltamend.inputs.pairing import Span, TensorPair
from deltamend.inputs.unrelated_causes import Matrices, cause_of, coarse_note
from deltamend.inputs.weight_samples import SURE, Values, WeightSample, sample_of

FAR = 0.5
"""From this ‖Δ‖/‖W_base‖ on, in the median matrix, it is doubtful whether BASE is the parent. The fine-tunes that were measured
stay below a fiftieth of it (docs/formats/parent.md)."""
LEAST, MOST, SCALED = 0.5, 2.0, 0.9
"""A descendant's matrix holds W_base at least half: weight decay and merges with other models change it less. It may have grown in
training, but not to more than twice W_base and hardly anything else, with a correlation above 0.9: then a scale is missing."""
ROUNDING_OF_4_BITS = 0.02
"""The rounding of weights to 4 bits is at least so large, as ‖Δ‖/‖W_base‖."""
_NAMED = 3


@dataclass(frozen=True)
class Relation:
    """What was found of one matrix.

    Attributes:
        name: of the tensor, with the label of the part.
        sample: the entries that were read.
        fault: what is wrong with it; "" where it comes from BASE's.
        matrices: where both sides of it are.
    """

    name: str
    sample: WeightSample
    fault: str
    matrices: Matrices


def parent_of(
    pairs: Iterable[TensorPair], values: tuple[Values, Values], *, allow_unrelated: bool = False
) -> ParentRecord:
    """Judge by a sample of every matrix that is to be repaired whether FINETUNED was made from BASE.

    Where W_ft = β·W_base + a rest that is unlike W_base, β is 1 for a descendant, however large its update is, and 0 for
    an unrelated, transposed or permuted matrix. About 4,000 entries of each matrix are read, at eight places, so that the
    check costs a fraction of a second, and comes before hours of work.

    Args:
        pairs: all tensors.
        values: read the entries of BASE and of FINETUNED.
        allow_unrelated: whether to go on where a matrix does not come from BASE's.

    Raises:
        PairingError: a matrix does not come from BASE's; with what was found, and the likely cause.

    Source: ours.
    """
    found = [relation for pair in pairs for relation in _relations(pair, values)]
    wrong = [relation for relation in found if relation.fault]
    verdict, sentence = _judge(found, wrong)
    if wrong and not allow_unrelated:
        cause = cause_of([relation.matrices for relation in wrong], values, everything=len(wrong) > len(found) // 2)
        raise PairingError(
            f"{sentence}; {cause}. Give the model that FINETUNED was made from, {option('exclude', 'REGEX')} to leave these "
            f"matrices as fine-tuned, or {option('allow_unrelated', 'True')} to go on all the same"
        )
    samples = [relation.sample for relation in found]
    distance = _median(sample.distance for sample in samples)
    # A model that was trained from quantised weights is nearer to them than their rounding is large.
    rounded = distance is not None and distance > ROUNDING_OF_4_BITS
    coarse = coarse_note([relation.matrices for relation in found], values) if rounded else ""
    return ParentRecord(
        verdict=verdict,
        sentence="; ".join(filter(None, [sentence, coarse])),
        matrices=len(found),
        unrelated=tuple(relation.name for relation in wrong),
        share=_median(sample.share for sample in samples),
        correlation=_median(sample.correlation for sample in samples),
        distance=distance,
        farthest=max((sample.distance for sample in samples), default=None),
    )


def _relations(pair: TensorPair, values: tuple[Values, Values]) -> Iterable[Relation]:
    """A sample of each matrix of a tensor that is to be repaired."""
    base, tensor = pair.base, pair.finetuned
    # The update of an adapter is known by itself: both sides are one model.
    if base is None or pair.action != "filter" or not pair.is_matrix or pair.update_rank is not None:
        return
    for part in pair.submatrices or (None,):
        rows = None if part is None else (_rows(part.base_rows), _rows(part.finetuned_rows))
        columns = None if part is None else part.columns
        sample = sample_of((base, tensor), values, rows, columns)
        if sample is not None:
            label = "" if part is None else part.label
            fault = _fault(
                sample, each_row=not (INPUT_EMBEDDING.search(pair.name) or OUTPUT_EMBEDDING.search(pair.name))
            )
            yield Relation(pair.name + label, sample, fault, Matrices(pair.name + label, (base, tensor), rows, columns))


def _rows(spans: Sequence[Span]) -> Sequence[int]:
    if len(spans) == 1:
        return range(*spans[0])
    rows: list[int] = np.concatenate([np.arange(*span) for span in spans]).tolist()
    return rows


def _fault(sample: WeightSample, *, each_row: bool) -> str:
    """What is wrong with a matrix; the rows of a vocabulary may each have been trained anew."""
    share, error = sample.share, sample.error
    if share + SURE * error < LEAST:
        return f"holds {share:.2f} times W_base"
    if share - SURE * error > MOST and sample.correlation > SCALED:
        return f"holds {share:.3g} times W_base"
    if each_row and sample.unrelated_places:
        return f"holds W_base at some of the places that were read and not at {sample.unrelated_places} of them"
    return ""


def _judge(found: Sequence[Relation], wrong: Sequence[Relation]) -> tuple[Parent, str]:
    if not found:
        return "unknown", "whether BASE is the parent of FINETUNED cannot be told, as no weights could be compared"
    share = median(relation.sample.share for relation in found)
    distance = median(relation.sample.distance for relation in found)
    sample = f"a sample of {_counted(len(found))} holds BASE's weights {share:.2f} times"
    if not wrong and distance < FAR:
        return "yes", f"BASE is the parent of FINETUNED: {sample}, and ‖Δ‖/‖W_base‖ is {distance:.2g} (medians)"
    if not wrong:
        return "doubtful", (
            f"BASE may be the parent of FINETUNED: {sample}, but ‖Δ‖/‖W_base‖ is {distance:.2g} (medians), and from {FAR} on "
            "this is doubtful"
        )
    named = ", ".join(
        f"{relation.name!r} {relation.fault} (correlation {relation.sample.correlation:.2f}, ‖Δ‖/‖W_base‖ "
        f"{relation.sample.distance:.2g})"
        for relation in wrong[:_NAMED]
    )
    more = ", …" if len(wrong) > _NAMED else ""
    most = 2 * len(wrong) > len(found)
    said = f"{len(wrong)} of {len(found)} matrices of FINETUNED do not come from BASE: {named}{more}"
    return ("no" if most else "in part"), f"BASE is not the parent of FINETUNED: {said}" if most else said


def _counted(matrices: int) -> str:
    return f"{matrices} {'matrix' if matrices == 1 else 'matrices'}"


def _median(numbers: Iterable[float]) -> float | None:
    held = list(numbers)
    return median(held) if held else None
