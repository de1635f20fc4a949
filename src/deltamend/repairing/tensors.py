"""Repair the tensors of a model one after another, each with its own method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from deltamend.checkpoint.manifest import MatrixRepair, PartRecord
from deltamend.inputs.pairing import TensorPair
from deltamend.matrices.items import MatrixItem, SidesReader, items_of
from deltamend.methods.method import Method
from deltamend.repairing.merge import copy_rows
from deltamend.repairing.one_matrix import Job
from deltamend.repairing.parts import job_for, repair_parts
from deltamend.repairing.rounding import Rounding
from deltamend.repairing.sinks import Sink
from deltamend.repairing.survey import Survey


class TensorRepairer:
    """What a worker needs to repair any tensor of a plan.

    Args:
        reader: opens both sides of a tensor.
        methods: the method of every tensor that is given to one, by name.
        device: where spectral filters run, "cpu" or a torch device.
        rounding: how sums are rounded to bf16 or fp16.
    """

    def __init__(
        self, reader: SidesReader, methods: Mapping[str, Method], *, device: str = "cpu", rounding: Rounding = "nearest"
    ) -> None:
        self.reader = reader
        self._methods, self._device, self._rounding = methods, device, rounding
        self._surveyed: dict[Method, Any] = {}

    def survey(
        self,
        pairs: Sequence[TensorPair],
        run: Callable[[Callable[[MatrixItem], None], Iterable[MatrixItem]], object],
    ) -> None:
        """Let every method look at all deltas that it is going to be given.

        Args:
            pairs: all tensors.
            run: calls a function for each item, in any order and from any thread.
        """
        for method in set(self._methods.values()):
            items = items_of(pair for pair in pairs if self._methods.get(pair.name) == method)
            self._surveyed[method] = method.survey(Survey(items, self.reader, self.job, run))

    def job(self, item: MatrixItem) -> Job:
        """What is to be done to a matrix that is given to a method."""
        method = self._methods[item.pair.name]
        return job_for(item, method, self._device, self._surveyed.get(method), self._rounding)

    def repair(self, pair: TensorPair, sink: Sink) -> tuple[MatrixRepair, tuple[PartRecord, ...]]:
        """Write one tensor to the sink: repaired, or as it is in FINETUNED where its action is "keep".

        Returns:
            What was done over all, and for each part where there are several.

        Raises:
            FilterError: NaN or Inf in an input or, after a cast to fp16, in the output; or a filter failed.
        """
        buffers = self.reader.buffers()
        if pair.action == "keep":
            finetuned = self.reader.finetuned(pair)
            copy_rows(finetuned, (0, finetuned.shape[0]), sink, pair.name, buffers)
            return MatrixRepair(outcome="kept", reason=""), ()
        item = MatrixItem(pair)
        return repair_parts(self.reader.sides(item), pair, self.job(item), sink, buffers)
