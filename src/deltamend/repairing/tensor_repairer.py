"""Repair any tensor of a model with the method that the plan gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from deltamend.checkpoint.manifest import MatrixRepair, PartRecord
from deltamend.inputs.pairing import TensorPair
from deltamend.matrices.update_walk import MatrixItem, SidesReader, items_of
from deltamend.methods.method import Method
from deltamend.repairing.merge import copy_rows
from deltamend.repairing.one_matrix import Job
from deltamend.repairing.rounding import Rounding
from deltamend.repairing.sinks import Sink
from deltamend.repairing.survey import Survey
from deltamend.repairing.tensor_parts import job_for, repair_parts


class TensorRepairer:
    """Repairs the tensors of a plan; all workers share it.

    Args:
        reader: reads both sides of a tensor.
        methods: the method of each tensor that has one, by the name of the tensor.
        device: where spectral filters run, "cpu" or a torch device.
        rounding: how repaired weights are rounded to bf16 or fp16.
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
        """Let every method look at all deltas that it will repair.

        Args:
            pairs: all tensors.
            run: calls a function with each of some items, in any order and in any thread.
        """
        for method in set(self._methods.values()):
            items = items_of(pair for pair in pairs if self._methods.get(pair.name) == method)
            self._surveyed[method] = method.survey(Survey(items, self.reader, self.job, run))

    def job(self, item: MatrixItem) -> Job:
        """Make the job of a matrix that has a method."""
        method = self._methods[item.pair.name]
        return job_for(item, method, self._device, self._surveyed.get(method), self._rounding)

    def repair(self, pair: TensorPair, sink: Sink) -> tuple[MatrixRepair, tuple[PartRecord, ...]]:
        """Repair one tensor, or copy it from FINETUNED if its action is "keep", and write it to the sink.

        Returns:
            The record of the whole tensor, and the records of its parts if there are several.

        Raises:
            FilterError: an input holds NaN or Inf, a filter failed, or the result overflows in the sink's dtype.
        """
        buffers = self.reader.buffers()
        if pair.action == "keep":
            finetuned = self.reader.finetuned(pair)
            copy_rows(finetuned, (0, finetuned.shape[0]), sink, pair.name, buffers)
            return MatrixRepair(outcome="kept", reason=""), ()
        item = MatrixItem(pair)
        return repair_parts(self.reader.sides(item), pair, self.job(item), sink, buffers)
