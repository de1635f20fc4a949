"""Pair the tensors of BASE and FINETUNED whose names are equal by now, and decide for each whether it is repaired, before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from deltamend.checkpoint.architecture import INPUT_EMBEDDING, OUTPUT_EMBEDDING
from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.checkpoint.manifest import CoverageRecord
from deltamend.errors import PairingError, UsageError, option
from deltamend.inputs.fused_weights import matrices_of_fused
from deltamend.inputs.model_layout import Parameter, Parameters, Role, matrix_view, parameter_by_name
from deltamend.inputs.pair_checks import differing_configs, refuse_unassembled, refuse_unpaired
from deltamend.inputs.resized_vocabulary import ResizedVocabulary
from deltamend.inputs.vocabulary import TokenRows

Span = tuple[int, int]

_NO_MATRIX: dict[Role, str] = {
    "bias": "not a matrix: a bias for each of several maps",
    "norm": "not a matrix: the scales of a norm",
    "depthwise": "not a matrix: the kernel of a depthwise convolution",
}
"""Why a tensor of several dimensions is no matrix, by its role."""


@dataclass(frozen=True)
class Submatrix:
    """A part of a tensor that is repaired as a matrix of its own, and where both sides hold it.

    Such as one expert, the query of a fused weight, or the rows of the tokens that both vocabularies have.

    Attributes:
        label: such as "[3]" for an expert or "[q]" for the query; "" for the rows of shared tokens.
        finetuned_rows: its rows in FINETUNED, as spans of rows of the tensor's view, one after another.
        base_rows: its rows in BASE, likewise; as many.
        columns: its columns, the same on both sides; None for all.
    """

    label: str
    finetuned_rows: tuple[Span, ...]
    base_rows: tuple[Span, ...]
    columns: Span | None = None

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(stop - start for start, stop in self.finetuned_rows)


@dataclass(frozen=True)
class TensorPair:
    """One tensor of the output.

    Attributes:
        finetuned: the tensor in FINETUNED.
        base: the tensor in BASE; None where it has none.
        action: "filter" where both sides hold it as a matrix, which is repaired; "keep" where its bytes are those of
            FINETUNED.
        reason: for "keep", why; for "filter", how it is read where that is not simply as one matrix.
        rows: how many rows are repaired, from the first; further rows are kept as fine-tuned.
        submatrices: where there are any, each of them is repaired by itself, and rows in none of them are kept.
        update_rank: the rank of the adapter, where the difference of the two sides is exactly the update of an adapter.
        same_source: whether both sides are computed from the same stored weights, so that these are rounded alike.
        inputs_of: as in `TensorContext`.
        parameter: what the tensor is to its model; None for what its name and shape say.
    """

    finetuned: StoredTensor
    base: StoredTensor | None
    action: Literal["filter", "keep"]
    reason: str
    rows: int
    submatrices: tuple[Submatrix, ...] = ()
    update_rank: int | None = None
    same_source: bool = False
    inputs_of: str | None = None
    parameter: Parameter | None = None

    @property
    def view(self) -> tuple[int, int] | None:
        """The (rows, columns) it is read as where it is a matrix, or holds some; otherwise None."""
        shape = self.finetuned.shape
        return matrix_view(self.parameter or parameter_by_name(self.name, shape), shape)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of every matrix that is repaired in it; one column for what is no matrix."""
        rows, columns = self.view or (self.finetuned.elements, 1)
        if not self.submatrices:
            return ((self.rows if columns > 1 else rows, columns),)
        return tuple(
            (part.rows, columns if part.columns is None else part.columns[1] - part.columns[0])
            for part in self.submatrices
        )

    @property
    def is_matrix(self) -> bool:
        """Whether the tensor is a matrix, or holds some."""
        return self.view is not None

    @property
    def name(self) -> str:
        """Name of the tensor, the same on both sides."""
        return self.finetuned.name


@dataclass(frozen=True)
class Pairing:
    """All tensors of the output, in the order of FINETUNED's files, and the names that only BASE has."""

    pairs: tuple[TensorPair, ...]
    only_in_base: tuple[str, ...]

    @property
    def coverage(self) -> CoverageRecord:
        """How many of FINETUNED's matrices have the action "filter"."""
        matrices = [pair for pair in self.pairs if pair.is_matrix]
        repaired = [pair for pair in matrices if pair.action == "filter"]
        return CoverageRecord(
            matrices=len(matrices),
            repaired=len(repaired),
            entries=sum(pair.finetuned.elements for pair in matrices),
            repaired_entries=sum(rows * columns for pair in repaired for rows, columns in pair.shapes),
        )


def pair_tensors(
    base: Mapping[str, StoredTensor],
    finetuned: Mapping[str, StoredTensor],
    configs: tuple[Mapping[str, Any], Mapping[str, Any]],
    *,
    include: str | None = None,
    exclude: str | None = None,
    tokens: TokenRows | None = None,
    split_fused: bool = False,
    layout: Parameters | None = None,
    allow_unpaired: bool = False,
) -> Pairing:
    """Pair the tensors of two models by name.

    Args:
        base: the tensors fine-tuning started from.
        finetuned: those of its descendant; every one of them is in the output.
        configs: the config.json of the two, or empty mappings where there is none. They are hints: names and shapes decide.
        include: a regular expression; a matrix is kept as fine-tuned unless its name matches it somewhere.
        exclude: a regular expression; a matrix is kept as fine-tuned if its name matches it somewhere.
        tokens: the rows of both vocabularies by token; None where rows are matched by their numbers.
        split_fused: whether the query, key and value, or the gate and up projection, are repaired one by one where they are
            stored as one weight.
        layout: what each tensor of FINETUNED is to its model; None for what their names and shapes say.
        allow_unpaired: whether many matrices of FINETUNED may have no partner.

    Raises:
        CheckpointError: one of the two was saved unassembled.
        PairingError: shapes differ by more than a resized vocabulary, there is no matrix in common, or too many have no
            partner.
        UsageError: `include` or `exclude` is not a regular expression.
    """
    refuse_unassembled(base, finetuned)
    fused = configs[1] if split_fused else None
    selection = _Selection(_pattern(include, "include"), _pattern(exclude, "exclude"))
    resized = ResizedVocabulary(base, finetuned, configs, tokens)
    how = _How(resized, selection, tokens, fused, layout or {}, differing_configs(configs))
    pairs = tuple(_pair(tensor, base.get(name), how) for name, tensor in finetuned.items())
    if not any(pair.base is not None and pair.is_matrix for pair in pairs):
        wanted_base = (
            "give the base model that FINETUNED was made from" if how.configs else "give a base of the same layout"
        )
        raise PairingError(
            f"no matrix has the same name in BASE (which holds {next(iter(base), 'nothing')!r}) and FINETUNED "
            f"(which holds {next(iter(finetuned), 'nothing')!r}){how.configs}; {wanted_base}, or "
            f"{option('rename', 'OLD=NEW')} where only prefixes differ"
        )
    if not allow_unpaired:
        wanted = [pair for pair in pairs if _could_be_repaired(pair) and not selection.refusal(pair.name)]
        refuse_unpaired([pair.finetuned for pair in wanted if pair.base is None], [pair.finetuned for pair in wanted])
    left = (tensor.own_name for name, tensor in base.items() if name not in finetuned)
    return Pairing(_with_inputs(pairs), tuple(sorted(left)))


def _could_be_repaired(pair: TensorPair) -> bool:
    """Whether a tensor is repaired as a matrix if it has a partner."""
    return pair.is_matrix and pair.finetuned.elements > 0 and pair.finetuned.dtype in FLOAT_NAMES


def _with_inputs(pairs: tuple[TensorPair, ...]) -> tuple[TensorPair, ...]:
    """Set `inputs_of` of each pair; an embedding that BASE ties to its head, and FINETUNED does not, has no inputs of its own."""
    heads = {pair.base.own_name for pair in pairs if pair.base is not None and OUTPUT_EMBEDDING.search(pair.name)}

    def inputs_of(pair: TensorPair) -> str | None:
        if pair.base is None:
            return None
        if INPUT_EMBEDDING.search(pair.name) and pair.base.own_name in heads:
            return ""
        return None if pair.base.own_name == pair.name else pair.base.own_name

    return tuple(replace(pair, inputs_of=inputs_of(pair)) for pair in pairs)


@dataclass(frozen=True)
class _Selection:
    include: re.Pattern[str] | None
    exclude: re.Pattern[str] | None

    def refusal(self, name: str) -> str:
        """Why `name` is not selected, or nothing."""
        if self.include is not None and not self.include.search(name):
            return "not matched by include"
        if self.exclude is not None and self.exclude.search(name):
            return "matched by exclude"
        return ""


@dataclass(frozen=True)
class _How:
    resized: ResizedVocabulary
    selection: _Selection
    tokens: TokenRows | None
    fused_config: Mapping[str, Any] | None
    layout: Parameters
    configs: str


def _pattern(text: str | None, name: str) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise UsageError(f"{option(name)}: {text!r} is not a regular expression ({error}); correct it") from error


def _pair(finetuned: StoredTensor, base: StoredTensor | None, how: _How) -> TensorPair:
    parameter = how.layout.get(finetuned.name) or parameter_by_name(finetuned.name, finetuned.shape)
    view = matrix_view(parameter, finetuned.shape)
    rows = finetuned.shape[0] if finetuned.shape else 1
    finetuned = replace(finetuned, view=view or (finetuned.elements, 1))
    if base is not None:
        base = replace(base, view=matrix_view(parameter, base.shape) or (base.elements, 1))

    def pair(
        action: Literal["filter", "keep"], reason: str, count: int, parts: tuple[Submatrix, ...] = ()
    ) -> TensorPair:
        return TensorPair(finetuned, base, action, reason, count, parts, parameter=parameter)

    if base is None:
        return pair("keep", "only in FINETUNED", rows)
    by_token = _rows_by_token(finetuned, base, how)
    if finetuned.shape != base.shape and not by_token:
        rows = _shared_rows(finetuned, base, how)
    if _entries_moved(finetuned, base, how):
        return pair("keep", "each entry belongs to a token, and the tokenizers differ", 0)
    if refusal := _why_kept(finetuned, base, view, parameter, how) or ("" if rows else "empty"):
        return pair("keep", refusal, rows)
    if view is None:
        raise AssertionError(f"{finetuned.name} is no matrix")
    if by_token:
        reason = (
            f"the tokenizers differ; {by_token[0].rows} of {view[0]} rows have a token that BASE has too, or none on either "
            "side, and are repaired"
        )
        return pair("filter", reason, by_token[0].rows, by_token)
    if finetuned.shape != base.shape:
        reason = f"vocabulary resized from {base.shape[0]} to {finetuned.shape[0]} rows; the first {rows} are repaired"
        return pair("filter", reason, rows)
    parts = _stacked(parameter, view)
    if how.fused_config is not None:
        parts = tuple(cut for part in parts or (_whole(view),) for cut in _cut(part, finetuned, how.fused_config))
        parts = () if parts == (_whole(view),) else parts
    return pair("filter", f"{len(parts)} matrices in one tensor" if parts else "", view[0], parts)


def _why_kept(
    finetuned: StoredTensor, base: StoredTensor, view: tuple[int, int] | None, parameter: Parameter, how: _How
) -> str:
    """Why a tensor that both sides hold keeps FINETUNED's bytes; nothing where it is repaired."""
    if view is None:
        return _NO_MATRIX.get(parameter.role, "not a matrix") if len(finetuned.shape) > 1 else "not a matrix"
    if finetuned.elements == 0:
        return "empty"
    if finetuned.dtype not in FLOAT_NAMES or base.dtype not in FLOAT_NAMES:
        return "not floating point"
    return how.selection.refusal(finetuned.name)


def _whole(view: tuple[int, int]) -> Submatrix:
    return Submatrix("", ((0, view[0]),), ((0, view[0]),))


def _stacked(parameter: Parameter, view: tuple[int, int]) -> tuple[Submatrix, ...]:
    """A submatrix for each of the matrices that lie on top of each other in a tensor, such as one for each expert."""
    rows, rest = divmod(view[0], parameter.count)
    if parameter.count < 2 or rest:
        return ()
    spans = [((number * rows, (number + 1) * rows),) for number in range(parameter.count)]
    return tuple(Submatrix(f"[{number}]", span, span) for number, span in enumerate(spans))


def _cut(part: Submatrix, tensor: StoredTensor, config: Mapping[str, Any]) -> tuple[Submatrix, ...]:
    """The matrices that are fused in one, by config.json; only itself where nothing is fused."""
    first = part.finetuned_rows[0][0]
    found = matrices_of_fused(tensor.name, (part.rows, tensor.shape[-1]), config)
    if not found:
        return (part,)
    cuts = []
    for name, rows, columns in found:
        spans = tuple((first + start, first + stop) for start, stop in rows)
        cuts.append(Submatrix(f"{part.label}[{name}]", spans, spans, columns))
    return tuple(cuts)


def _rows_by_token(finetuned: StoredTensor, base: StoredTensor, how: _How) -> tuple[Submatrix, ...]:
    """The rows of an embedding or head whose tokens both models have; empty where rows are matched by their numbers."""
    if how.tokens is None or len(finetuned.shape) != 2 or not how.resized.holds_tokens(finetuned, base):
        return ()
    runs = how.tokens.runs((finetuned.shape[0], base.shape[0]))
    if runs is None:
        return ()
    if not runs:
        raise PairingError(
            f"tensor {finetuned.name!r}: the tokenizers of BASE and FINETUNED have no token in common; give the base model "
            "this one was fine-tuned from"
        )
    ours = tuple((run.finetuned, run.finetuned + run.length) for run in runs)
    return (Submatrix("", ours, tuple((run.base, run.base + run.length) for run in runs)),)


def _entries_moved(finetuned: StoredTensor, base: StoredTensor, how: _How) -> bool:
    """Whether a vector, such as the bias of a head, has an entry for each token, and not the same ones on both sides."""
    if how.tokens is None or len(finetuned.shape) != 1 or not how.resized.holds_tokens(finetuned, base):
        return False
    return how.tokens.runs((finetuned.shape[0], base.shape[0])) is not None


def _shared_rows(finetuned: StoredTensor, base: StoredTensor, how: _How) -> int:
    """How many rows both sides hold where the vocabulary was resized; any other difference of shapes is refused."""
    if how.resized.holds_tokens(finetuned, base):
        return min(base.shape[0], finetuned.shape[0])
    raise PairingError(
        f"tensor {finetuned.name!r}: shape {list(base.shape)} in BASE, {list(finetuned.shape)} in FINETUNED, which is not a "
        f"resized vocabulary{how.configs}; the two are of different sizes, so give the base model that FINETUNED was made from"
    )
