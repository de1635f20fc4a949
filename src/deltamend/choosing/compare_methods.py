"""Compare methods on the same update, without writing a checkpoint."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Unpack

import numpy as np
from pydantic import Field

from deltamend.errors import UsageError, option
from deltamend.inputs.open_models import OpenPair
from deltamend.machine.threads import Workers
from deltamend.matrices.buffers import norm_squared, row_chunks
from deltamend.matrices.delta import DeltaBlocks
from deltamend.matrices.update_walk import CheckpointTensors, MatrixItem, SidesReader, costliest_first, items_of
from deltamend.methods.method import KeptDelta, Method
from deltamend.methods.registry import all_methods, get_method
from deltamend.progress import Progress, count_reporter, ignore_progress
from deltamend.records import Record
from deltamend.repairing.one_matrix import apply_method, open_delta
from deltamend.repairing.options import LEAVES_NONE, PairKeywords, PairOptions, make_options, opened_pair
from deltamend.repairing.survey import Survey
from deltamend.repairing.tensor_parts import job_for
from deltamend.spectrum.blocks import Block


class TensorComparison(Record):
    """What one method keeps of one matrix, before W* is rounded to the stored dtype. Norms are Frobenius norms."""

    method: str = Field(description="Name of the method, followed by the parameters that differ from their defaults.")
    tensor: str = Field(description="Name of the matrix.")
    outcome: str = Field(description="filtered, kept, reverted or zero, as in a repair's report.")
    delta_norm: float = Field(description="‖Δ‖.")
    to_base: float = Field(description="‖W* − W_base‖ = ‖Δ*‖.")
    to_finetuned: float = Field(description="‖W* − W_ft‖ = ‖Δ* − Δ‖.")
    entries: int = Field(description="Number of entries.")
    changed: int = Field(description="Number of entries in which W* differs from the base.")
    rank: int | None = Field(description="Number of singular values that are kept; none if the method has no rank.")
    full_rank: int = Field(description="Number of singular values: the shorter side of the matrix.")
    seconds: float = Field(description="Time that the method took on this matrix.")


class MethodComparison(Record):
    """What one method keeps over all matrices."""

    method: str = Field(description="Name of the method, followed by the parameters that differ from their defaults.")
    energy: float = Field(description="Σ‖Δ*‖²/Σ‖Δ‖²; 1 if every Δ is zero.")
    density: float = Field(description="Share of the entries in which W* differs from the base, 0 to 1.")
    rank: float | None = Field(
        description="Mean share of the singular values that are kept; none if the method has no rank."
    )
    to_base: float = Field(description="‖W* − W_base‖ over all matrices.")
    to_finetuned: float = Field(description="‖W* − W_ft‖ over all matrices.")
    seconds: float = Field(description="Time that the method took on all matrices.")


class Comparison(Record):
    """The comparison of several methods on an update."""

    base: str = Field(description="Name of BASE.")
    finetuned: str = Field(description="Name of FINETUNED.")
    tensors: tuple[TensorComparison, ...] = Field(description="By matrix, in the order of FINETUNED, then by method.")
    left_out: dict[str, str] = Field(description="Methods that were not compared, and why.")

    @cached_property
    def methods(self) -> tuple[MethodComparison, ...]:
        """The sum over all matrices for each method, in the order in which the methods were given."""
        names = dict.fromkeys(row.method for row in self.tensors)
        return tuple(_total(name, [row for row in self.tensors if row.method == name]) for name in names)


def compare(
    base: str | os.PathLike[str] | OpenPair,
    finetuned: str | os.PathLike[str] | None = None,
    *,
    methods: Sequence[str | Method] = ("all",),
    device: str = "cpu",
    workers: int | None = None,
    progress: Progress | None = None,
    **options: Unpack[PairKeywords],
) -> Comparison:
    """Run several methods on every matrix of an update, and measure what each of them keeps. Nothing is written.

    The weights are read once for all methods together, and again for each method that looks at the whole model first.

    Args:
        base: the checkpoint that fine-tuning started from: a folder, a hub id, or any other form that `open_checkpoint`
            takes. It may also be an open pair from `open_pair` or from a plan (`plan.pair`), which stays open.
        finetuned: the fine-tuned checkpoint, in any of the same forms; leave it out when `base` is an open pair.
        methods: names of methods, or methods made with `get_method`; "all" stands for every method that needs no parameter.
        device: where spectral filters run, "cpu" or a torch device such as "cuda".
        workers: number of matrices worked on at a time; None for one per core. It does not change the result.
        progress: callback for the name of each finished matrix and the share of the matrices that are done.
        options: the options that pair and select matrices, such as `include` and `rename`, as for `deltamend.repair`; not with an open pair.

    Returns:
        One record for each method and matrix.

    Raises:
        CheckpointError: an input cannot be read, or is quantised.
        PairingError: the inputs do not belong together.
        UsageError: a method is unknown or is given twice, or no matrix is selected.
        FilterError: a tensor holds NaN or Inf, or a filter failed.

    Source: ours. `deltamend methods show NAME` names the paper of each method.
    """
    chosen, left_out = choose_methods(methods)
    team = Workers(workers)
    with opened_pair(base, finetuned, make_options(PairOptions, options)) as pair:
        items = items_of(pair.pairing.pairs)
        if not items:
            raise UsageError(f"no matrix is left to compare methods on; {LEAVES_NONE}")
        comparing = _Comparing(pair, chosen, device, progress or ignore_progress)
        with team:
            tensors = comparing.compare(items, team)
        return Comparison(base=pair.names[0], finetuned=pair.names[1], tensors=tuple(tensors), left_out=left_out)


def choose_methods(methods: Sequence[str | Method]) -> tuple[list[Method], dict[str, str]]:
    """Make the methods to compare.

    Returns:
        The methods; and the names of those that "all" leaves out, each with the reason.

    Raises:
        UsageError: a method does not exist, needs parameters, or is given twice.
    """
    chosen: list[Method] = []
    left_out: dict[str, str] = {}
    for method in methods:
        if isinstance(method, Method):
            chosen.append(method)
        elif method != "all":
            chosen.append(get_method(method))
        else:
            for name, kind in all_methods().items():
                required = [field for field, info in kind.model_fields.items() if info.is_required()]
                if required:
                    left_out[name] = f"needs {', '.join(required)}"
                else:
                    chosen.append(get_method(name))
    described = [method.described() for method in chosen]
    for text in described:
        if described.count(text) > 1:
            raise UsageError(f"{option('methods')}: {text!r} is given twice; give it once")
    return chosen, left_out


class _Comparing:
    """Runs one comparison; all workers share it."""

    def __init__(self, pair: OpenPair, methods: list[Method], device: str, progress: Progress) -> None:
        self._reader = SidesReader(CheckpointTensors(pair.base), CheckpointTensors(pair.finetuned))
        self._methods, self._device, self._progress = methods, device, progress
        self._surveyed: dict[Method, Any] = {}

    def compare(self, items: list[MatrixItem], team: Workers) -> list[TensorComparison]:
        """Compare the methods on all matrices, beginning with the most costly ones."""
        for method in self._methods:
            job = partial(job_for, method=method, device=self._device)
            self._surveyed[method] = method.survey(Survey(items, self._reader, job, team.map))
        report = count_reporter(self._progress, len(items))

        def compare_one(item: MatrixItem) -> tuple[str, list[TensorComparison]]:
            rows = self._compare_one(item)
            report(item.name)
            return item.name, rows

        rows = dict(team.map(compare_one, costliest_first(items)))
        return [row for item in items for row in rows[item.name]]

    def _compare_one(self, item: MatrixItem) -> list[TensorComparison]:
        """Run every method on one matrix. The delta is formed again only for methods that need blocks of whole rows."""
        buffers = self._reader.buffers()
        sides = self._reader.sides(item)
        job = job_for(item, self._methods[0], self._device)
        narrow = replace(job, method=next((method for method in self._methods if not method.whole_rows), job.method))
        delta, context = open_delta(*sides, narrow, buffers)
        zero = delta.is_zero()
        rows = []
        for method in self._methods:
            started = time.perf_counter()
            own_delta, own_context = delta, replace(context, surveyed=self._surveyed[method])
            if method.whole_rows and not delta.in_one_block:
                own_delta, own_context = open_delta(*sides, replace(job, method=method), buffers)
            kept = KeptDelta.identity("") if zero else apply_method(method, own_delta, own_context, sides)
            rows.append(_measured(method, job.name, own_delta, kept, started))
        return rows


@dataclass
class _Sums:
    """Running sums over the entries of one matrix."""

    delta: float = 0.0
    kept: float = 0.0
    lost: float = 0.0
    changed: int = 0


def _measured(method: Method, name: str, delta: DeltaBlocks, kept: KeptDelta, started: float) -> TensorComparison:
    """Apply the decision of a method to a copy of every block of Δ, and measure the result."""
    sums = _Sums()
    for start, stop, values in delta:
        result = kept.block(Block(start, stop, values.copy()))
        for first, last in row_chunks((values.shape[0], values.shape[1])):
            before, after = values[first:last], result[first:last]
            sums.delta += norm_squared(before)
            sums.kept += norm_squared(after)
            sums.lost += norm_squared(after - before)
            sums.changed += int(np.count_nonzero(after))
    return TensorComparison(
        method=method.described(),
        tensor=name,
        outcome=kept.outcome if sums.delta else "zero",
        delta_norm=math.sqrt(sums.delta),
        to_base=math.sqrt(sums.kept),
        to_finetuned=math.sqrt(sums.lost),
        entries=math.prod(delta.shape),
        changed=sums.changed,
        rank=None if kept.spectrum is None else kept.spectrum.rank,
        full_rank=min(delta.shape),
        seconds=time.perf_counter() - started,
    )


def _total(method: str, rows: list[TensorComparison]) -> MethodComparison:
    delta, kept = _squares(row.delta_norm for row in rows), _squares(row.to_base for row in rows)
    shares = [row.rank / row.full_rank for row in rows if row.rank is not None]
    return MethodComparison(
        method=method,
        energy=kept / delta if delta else 1.0,
        density=sum(row.changed for row in rows) / sum(row.entries for row in rows),
        rank=sum(shares) / len(shares) if shares else None,
        to_base=math.sqrt(kept),
        to_finetuned=math.sqrt(_squares(row.to_finetuned for row in rows)),
        seconds=sum(row.seconds for row in rows),
    )


def _squares(norms: Iterable[float]) -> float:
    return sum(norm**2 for norm in norms)
