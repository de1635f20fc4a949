"""Let a method look at every delta of the model before the first matrix is repaired."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from deltamend.errors import FilterError
from deltamend.matrices.items import MatrixItem, SidesReader
from deltamend.methods.method import Counts, TensorContext
from deltamend.repairing.merge import refuse_damaged
from deltamend.repairing.one_matrix import Job, open_delta
from deltamend.spectrum.blocks import Blocks


@dataclass(frozen=True)
class Survey:
    """All deltas that one method is going to be given, as `methods.Deltas`.

    Attributes:
        items: the matrices.
        reader: opens their sides.
        job: what is to be done to a matrix.
        run: calls a function for each item, in any order and from any thread.
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
