"""The survey: some methods look at every delta of the model before they repair the first matrix."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from deltamend.errors import FilterError
from deltamend.matrices.update_walk import MatrixItem, SidesReader
from deltamend.methods.method import Counts, TensorContext
from deltamend.repairing.merge import refuse_damaged
from deltamend.repairing.one_matrix import Job, open_delta
from deltamend.spectrum.blocks import Blocks


@dataclass(frozen=True)
class Survey:
    """All deltas that one method will repair; an implementation of `methods.Deltas`.

    Attributes:
        items: the matrices.
        reader: reads the base and the fine-tuned side of a matrix.
        job: makes the job of a matrix.
        run: calls a function with each of some items, in any order and in any thread.
    """

    items: Sequence[MatrixItem]
    reader: SidesReader
    job: Callable[[MatrixItem], Job]
    run: Callable[[Callable[[MatrixItem], None], Iterable[MatrixItem]], object]

    def total(self, count: Callable[[Blocks, TensorContext], Counts]) -> Counts:
        """See `Deltas.total`."""
        lock = threading.Lock()
        totals: list[Counts] = []

        def add(item: MatrixItem) -> None:
            sides, job = self.reader.sides(item), self.job(item)
            delta, context = open_delta(*sides, job, self.reader.buffers())
            try:
                found = count(delta, context)
            except FilterError:
                refuse_damaged(sides, job.name)
                raise
            with lock:
                totals[:] = [totals[0] + found if totals else found]

        self.run(add, self.items)
        return totals[0]
