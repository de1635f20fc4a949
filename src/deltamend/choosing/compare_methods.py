"""What every method would make of the same update, side by side, without writing a checkpoint."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.errors import UsageError
from deltamend.inputs.open_models import open_pair
from deltamend.inputs.pairing import Submatrix, TensorPair
from deltamend.machine.threads import one_thread_each
from deltamend.matrices.buffers import Buffers, norm_squared, row_chunks
from deltamend.matrices.delta import DeltaBlocks
from deltamend.matrices.views import Matrix, StoredMatrix
from deltamend.methods.method import KeptDelta, Method
from deltamend.methods.registry import all_methods, get_method
from deltamend.progress import Progress
from deltamend.records import Record
from deltamend.repairing.one_matrix import Job, Survey, apply_method, open_delta, open_part
from deltamend.repairing.plan import pair_flops
from deltamend.spectrum.blocks import Block


class TensorComparison(Record):
    """What one method keeps of one matrix, before the cast to the stored dtype. Norms are Frobenius norms."""

    method: str = Field(description="Method and its parameters that are not defaults.")
    tensor: str
    outcome: str
    delta_norm: float = Field(description="‖Δ‖.")
    to_base: float = Field(description="‖W* − W_base‖ = ‖Δ*‖.")
    to_finetuned: float = Field(description="‖W* − W_ft‖ = ‖Δ* − Δ‖.")
    entries: int
    changed: int = Field(description="Entries where W* differs from the base.")
    rank: int | None = Field(description="Singular values kept, where the method counts them.")
    full_rank: int
    seconds: float


class MethodComparison(Record):
    """One method over all matrices."""

    method: str
    energy: float = Field(description="Σ‖Δ*‖²/Σ‖Δ‖²; 1 where no matrix changed.")
    density: float = Field(description="Share of the entries where W* differs from the base.")
    rank: float | None = Field(description="Mean share of the singular values that are kept, where they are counted.")
    to_base: float = Field(description="‖W* − W_base‖ over all matrices.")
    to_finetuned: float = Field(description="‖W* − W_ft‖ over all matrices.")
    seconds: float


class Comparison(Record):
    """All methods on all matrices."""

    base: str
    finetuned: str
    tensors: tuple[TensorComparison, ...] = Field(description="By tensor, in the order of FINETUNED, then by method.")
    left_out: dict[str, str] = Field(description="Methods that were not compared, and why.")

    @cached_property
    def methods(self) -> tuple[MethodComparison, ...]:
        """One line for each method, in the order they were given."""
        names = dict.fromkeys(row.method for row in self.tensors)
        return tuple(_total(name, [row for row in self.tensors if row.method == name]) for name in names)


def compare(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    *,
    methods: Sequence[str | Method] = ("all",),
    include: str | None = None,
    exclude: str | None = None,
    device: str = "cpu",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run methods on every matrix of an update, and measure what each keeps.

    The weights are read once for all methods, plus twice for those that look at the whole model first. Nothing is written.

    Args:
        base: folder of the checkpoint fine-tuning started from.
        finetuned: folder of its descendant.
        methods: names, or methods made with `get_method`; "all" is every method that needs no parameter.
        include: regular expression; only matrices whose name it finds are compared.
        exclude: regular expression; matrices whose name it finds are left out.
        device: where spectral filters run.
        workers: matrices worked on at a time; None for one a core.
        progress: called as work ends.

    Raises:
        CheckpointError: an input cannot be read, or is quantised.
        PairingError: the inputs do not belong together.
        UsageError: unknown method, or a method twice; or no matrix is left.
        FilterError: NaN or Inf in a tensor, or a filter failed.
    """
    chosen, left_out = choose_methods(methods)
    with open_pair(base, finetuned, include=include, exclude=exclude) as pair:
        items = [
            (one, part) for one in pair.pairing.pairs if one.action == "filter" for part in one.submatrices or (None,)
        ]
        if not items:
            raise UsageError("no matrix is left to compare; widen --include or --exclude")
        run = _Comparing(pair.base, pair.finetuned, chosen, device, progress)
        with one_thread_each(), ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as executor:
            tensors = run.compare(items, executor)
        return Comparison(
            base=Path(base).name, finetuned=Path(finetuned).name, tensors=tuple(tensors), left_out=left_out
        )


def choose_methods(methods: Sequence[str | Method]) -> tuple[list[Method], dict[str, str]]:
    """The methods to compare, and those that "all" leaves out with the reason.

    Raises:
        UsageError: there is none of that name, it needs parameters, or it is given twice.
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
            raise UsageError(f"--methods: {text!r} is given twice; give it once")
    return chosen, left_out


Item = tuple[TensorPair, Submatrix | None]
"""A matrix of the output: a tensor, or one of its parts."""


def item_name(item: Item) -> str:
    """The name of the tensor, and the label of the part."""
    pair, part = item
    return pair.name if part is None else pair.name + part.label


class _Comparing:
    """The workers of one comparison."""

    def __init__(
        self, base: Checkpoint, finetuned: Checkpoint, methods: list[Method], device: str, progress: Progress | None
    ) -> None:
        self._base, self._finetuned, self._methods = base, finetuned, methods
        self._device, self._progress = device, progress
        self._surveyed: dict[Method, Any] = {}
        self._local = threading.local()

    def compare(self, items: list[Item], executor: ThreadPoolExecutor) -> list[TensorComparison]:
        """All rows; the costliest matrices are begun first."""

        def run(function: Callable[[Item], None], items: Sequence[Item]) -> None:
            list(executor.map(function, items))

        for method in self._methods:
            self._surveyed[method] = method.survey(Survey(items, self._opener(method), self._buffers, run))
        order = sorted(items, key=lambda item: (-pair_flops(item[0]), item_name(item)))
        rows: dict[str, list[TensorComparison]] = {}
        for done, (item, found) in enumerate(zip(order, executor.map(self._compare_one, order), strict=True), start=1):
            rows[item_name(item)] = found
            if self._progress is not None:
                self._progress(item_name(item), done / len(order))
        return [row for item in items for row in rows[item_name(item)]]

    def _compare_one(self, item: Item) -> list[TensorComparison]:
        base, finetuned, job = self._opener(self._methods[0])(item)
        narrow = replace(job, method=next((method for method in self._methods if not method.whole_rows), job.method))
        delta, context = open_delta(base, finetuned, narrow, self._buffers())
        zero = delta.is_zero()
        rows = []
        for method in self._methods:
            started = time.perf_counter()
            own, seen = delta, replace(context, surveyed=self._surveyed[method])
            if method.whole_rows and not delta.in_one_block:
                own, seen = open_delta(base, finetuned, replace(job, method=method), self._buffers())
            kept = KeptDelta.identity("") if zero else apply_method(method, own, seen, (base, finetuned))
            rows.append(_measured(method, job.name, own, kept, started))
        return rows

    def _opener(self, method: Method) -> Callable[[Item], tuple[Matrix, Matrix, Job]]:
        def opened(item: Item) -> tuple[Matrix, Matrix, Job]:
            pair, part = item
            if pair.base is None:
                raise AssertionError(f"{pair.name} has no base")
            buffers = self._buffers()
            base = StoredMatrix(self._base, pair.base, buffers, "base")
            finetuned = StoredMatrix(self._finetuned, pair.finetuned, buffers, "finetuned")
            job = Job(
                pair.name, pair.rows, method, self._device, update_rank=pair.update_rank, inputs_of=pair.inputs_of
            )
            return (base, finetuned, job) if part is None else open_part((base, finetuned), job, part, buffers)

        return opened

    def _buffers(self) -> Buffers:
        """The memory of this thread."""
        if not hasattr(self._local, "buffers"):
            self._local.buffers = Buffers()
        buffers: Buffers = self._local.buffers
        return buffers


@dataclass
class _Sums:
    """Running sums over the entries of one matrix."""

    delta: float = 0.0
    kept: float = 0.0
    lost: float = 0.0
    changed: int = 0


def _measured(method: Method, name: str, delta: DeltaBlocks, kept: KeptDelta, started: float) -> TensorComparison:
    """Apply what a method decided to a copy of every block, and measure it."""
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
