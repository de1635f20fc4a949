"""Plan a repair: decide everything before any weight is read or any file is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Self

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.checkpoint.file_names import ADAPTER_FILES, CONFIG_FILE
from deltamend.checkpoint.layout import Layout, plan_layout
from deltamend.checkpoint.output_checks import check_output
from deltamend.checkpoint.sidecars import LeftOut, Sidecar, list_sidecars, with_hashes, with_tokenizer_of
from deltamend.errors import CheckpointError, UsageError, option
from deltamend.inputs.open_models import OpenPair
from deltamend.inputs.pairing import Pairing, TensorPair
from deltamend.machine.digests import json_sha256
from deltamend.methods.hybrid import Hybrid
from deltamend.methods.method import Method
from deltamend.methods.registry import method_class
from deltamend.repairing.adapter_layout import AdapterPlan, adapter_of_auto, has_known_rank, plan_adapter
from deltamend.repairing.estimate import RunEstimate, estimate_run
from deltamend.repairing.options import AUTO, Recommendation, RepairOptions, with_recommendation
from deltamend.repairing.rounding import check_rounding
from deltamend.repairing.rules import MethodChoice, Rule

Recommend = Callable[[], Recommendation]
"""Finds the method for `method="auto"`. It may take minutes, so it is called after everything else has been checked."""


@dataclass(frozen=True)
class RepairPlan:
    """What a repair will do. It is a context manager: both checkpoints stay open until its block ends.

    Attributes:
        pair: both checkpoints, and which of their tensors belong together.
        out: the folder that will be written.
        options: the options of the repair, with the recommended method in the place of "auto".
        method: the default method, used for every matrix to which no rule gives another method.
        methods: the method of each tensor that will be given to one, by the name of the tensor.
        pairing: the tensors, each with its action: "filter" if it has a method, else "keep".
        layout: the weight files. For an adapter these are the files of the checkpoint that it replaces.
        sidecars: the other files of FINETUNED, such as its tokenizer, that will be copied.
        left_out: the files of FINETUNED that will not be copied, and why.
        adapter: where each tensor goes in an adapter; None if a checkpoint is written.
        recommendation: the method that "auto" chose; None if a method was named.
    """

    pair: OpenPair
    out: Path
    options: RepairOptions
    method: Method
    methods: Mapping[str, Method]
    pairing: Pairing
    layout: Layout
    sidecars: tuple[Sidecar, ...]
    left_out: tuple[LeftOut, ...]
    adapter: AdapterPlan | None = None
    recommendation: Recommendation | None = None

    @property
    def base(self) -> Checkpoint:
        """The model that fine-tuning started from."""
        return self.pair.base

    @property
    def finetuned(self) -> Checkpoint:
        """The fine-tuned model."""
        return self.pair.finetuned

    @cached_property
    def sha256(self) -> str:
        """A hash of the options, the sidecar files and the headers of the weight files. It does not depend on the machine."""
        described: dict[str, Any] = {
            "deltamend": version("deltamend"),
            "method": [self.method.name, self.method.model_dump(mode="json")],
            "methods": sorted((name, method.described()) for name, method in self.methods.items()),
            "options": self.described_options,
            "base_name": None if self.adapter is None else self.adapter.base_name,
            "sidecars": [(sidecar.name, sidecar.sha256) for sidecar in self.sidecars],
            "parts": [
                (pair.name, pair.rows, pair.view, [astuple(part) for part in pair.submatrices])
                for pair in self.pairing.pairs
            ],
            "modules": None if self.adapter is None else sorted(self.adapter.names.items()),
        }
        for side, checkpoint in (("base", self.base), ("finetuned", self.finetuned)):
            tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: tensor.name)
            described[side] = [(item.name, item.dtype, item.shape, item.file, item.start) for item in tensors]
            adapter = {} if checkpoint.adapter is None else checkpoint.adapter.config
            described[f"{side} configs"] = [dict(checkpoint.config), dict(adapter)]
        return json_sha256(described)

    @cached_property
    def resume_key(self) -> str:
        """A hash of the plan and the modification times of the input files; `resume` continues a run with the same one."""
        times = [*self.base.modification_times(), *self.finetuned.modification_times()]
        return json_sha256([self.sha256, times])

    @property
    def inputs(self) -> list[Path]:
        """Every folder and file that the run reads. OUT must not replace any of them."""
        examples = [] if self.options.keep is None else [self.options.keep]
        return [*self.base.folders, *self.finetuned.folders, *self.method_files, *examples]

    @cached_property
    def method_files(self) -> dict[Path, tuple[int, int]]:
        """The files that parameters of methods name, with their size and modification time when the plan was made."""
        methods = (self.method, *self.methods.values())
        return {path: _size_and_time(path) for method in methods for path in _files_of(method)}

    def check_method_files(self) -> None:
        """Raise CheckpointError if one of the files of `method_files` has changed since the plan was made."""
        for path, before in self.method_files.items():
            if _size_and_time(path) != before:
                raise CheckpointError(f"{path}: changed during the run; start again when nothing writes to it")

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user on how the inputs are read."""
        return self.pair.notes

    @property
    def described_options(self) -> dict[str, str | None]:
        """The options as text, in the form in which the manifest holds them."""
        size = self.options.max_shard_size
        return {
            "include": self.options.include,
            "exclude": self.options.exclude,
            "out_dtype": self.options.out_dtype,
            "max_shard_size": None if size is None else str(size),
            "rules": json.dumps([_described_rule(rule, self.method.name) for rule in self.options.rules]),
            "vectors": str(self.options.vectors),
            "rename": ", ".join(self.options.rename) or None,
            "split_fused": str(self.options.split_fused),
            "output": self.options.output,
            "rounding": self.options.rounding,
        }

    @property
    def bytes_to_write(self) -> int:
        """The size of the weights and of the copied files in the output, in bytes."""
        return self.layout.nbytes + sum(sidecar.size for sidecar in self.sidecars)

    def estimate(self, workers: int) -> RunEstimate:
        """The time and memory that the run should take with this number of workers."""
        return estimate_run(self.pairing.pairs, self.bytes_to_write, workers, adapter=self.adapter is not None)

    def described(self, workers: int) -> dict[str, Any]:
        """The plan as JSON data for scripts, as `deltamend repair --dry-run --json` prints it."""
        estimate = self.estimate(workers)
        return {
            "method": self.method.name,
            "parameters": self.method.model_dump(mode="json"),
            "options": self.described_options,
            "tensors": [
                {
                    "name": pair.name,
                    "shape": pair.finetuned.shape,
                    "action": pair.action,
                    "method": self.methods[pair.name].described() if pair.name in self.methods else None,
                    "reason": pair.reason,
                }
                for pair in self.pairing.pairs
            ],
            "only_in_base": self.pairing.only_in_base,
            "left_out": [{"name": file.name, "reason": file.reason} for file in self.left_out],
            "checkpoint_bytes": self.bytes_to_write,
            "seconds": estimate.seconds,
            "memory_bytes": estimate.memory_bytes,
            "workers": workers,
        }

    def close(self) -> None:
        """Close both checkpoints."""
        self.pair.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def plan_repair(
    pair: OpenPair,
    out: str | os.PathLike[str],
    options: RepairOptions,
    *,
    overwrite: bool = False,
    recommend: Recommend | None = None,
) -> RepairPlan:
    """Plan a repair, without reading any weight or writing any file.

    Args:
        pair: both checkpoints. Closing the plan closes them.
        out: the folder to write.
        options: the options of the repair. Those that select matrices are replaced by the selection of the pair.
        overwrite: whether OUT may already exist.
        recommend: finds the method for `method="auto"`; it is not called for any other method.

    Raises:
        UsageError: the method is unknown, an option is invalid, or `include` and `exclude` leave nothing to repair.
        OutputError: OUT already exists, or cannot be written to.
    """
    options = options.model_copy(update=dict(pair.selection))
    layout = plan_layout(pair.finetuned, out_dtype=options.dtype_name, max_shard_size=options.max_shard_size)
    sidecars, left_out = list_sidecars(
        pair.finetuned.folder, frozenset(pair.finetuned.headers), _stored_names(pair.finetuned)
    )
    if pair.finetuned.adapter is not None:
        sidecars = with_tokenizer_of(sidecars, pair.finetuned.adapter.folder)
        sidecars, left_out = _without_merged_adapter(sidecars, left_out, pair.finetuned.adapter.folder)
    if options.output == "adapter":
        sidecars, left_out = _sidecars_of_an_adapter(sidecars, left_out)
    sidecars = with_hashes(sidecars)  # before the minutes that a recommendation may take
    advice = None
    if options.method == AUTO:
        examples = [] if options.keep is None else [options.keep]
        check_output(Path(out), [*pair.base.folders, *pair.finetuned.folders, *examples], overwrite=overwrite)
        # An unknown method in a rule is an error now, not after the minutes that the recommendation may take.
        MethodChoice("none", None, options.rules, options.vectors)
        if options.output == "adapter":
            _refuse_adapter_of_auto(pair.pairing, options)
        advice = _recommended(recommend)
        options = with_recommendation(options, advice)
    choice = MethodChoice(options.method, options.parameters, options.rules, options.vectors)
    pairing, methods = assign_methods(pair.pairing, choice)
    check_rounding(options.rounding, methods.values())
    _refuse_empty_selection(options, pair.pairing, pairing)
    adapter = plan_adapter(pair.base, pair.called[0], pairing, methods) if options.output == "adapter" else None
    plan = RepairPlan(
        pair, Path(out), options, choice.default, methods, pairing, layout, sidecars, left_out, adapter, advice
    )
    check_output(plan.out, plan.inputs, overwrite=overwrite)
    return plan


def _refuse_adapter_of_auto(pairing: Pairing, options: RepairOptions) -> None:
    """Refuse an adapter with `method="auto"` before the base is run, unless the update is an adapter's.

    Raises:
        UsageError: the rank of some matrix's update is not known.
    """
    pairs, methods = assign_methods(pairing, MethodChoice("none", None, options.rules, options.vectors))
    unknown = [
        pair.name for pair in pairs.pairs if pair.name in methods and pair.is_matrix and not has_known_rank(pair)
    ]
    if unknown:
        raise UsageError(adapter_of_auto(f"the update of {unknown[0]!r} has no known rank"))


def _refuse_empty_selection(options: RepairOptions, found: Pairing, chosen: Pairing) -> None:
    """Refuse `include` and `exclude` that leave nothing to repair: a mistyped name would otherwise give an unrepaired copy.

    Raises:
        UsageError: one of them is given, and nothing is left.
    """
    if any(pair.action == "filter" for pair in chosen.pairs):
        return
    given = {"include": options.include, "exclude": options.exclude}
    written = [f"{option(name)} {pattern!r}" for name, pattern in given.items() if pattern is not None]
    matrix = next((pair.name for pair in found.pairs if pair.is_matrix and pair.base is not None), None)
    if written and matrix is not None:
        raise UsageError(
            f"{' and '.join(written)}: nothing is left to repair; a matrix is called, for example, {matrix!r}"
        )


def _stored_names(checkpoint: Checkpoint) -> frozenset[str]:
    """The names of the tensors in the files of a checkpoint."""
    return frozenset(entry.name for header in checkpoint.headers.values() for entry in header.entries)


def _recommended(recommend: Recommend | None) -> Recommendation:
    if recommend is None:
        raise UsageError(f"{option('method', AUTO)}: no method can be recommended in this place; name a method")
    return recommend()


def _files_of(method: Method) -> Iterator[Path]:
    """The files that the parameters of a method, or of its steps, name."""
    yield from (value for _, value in method if isinstance(value, Path))
    if isinstance(method, Hybrid):
        for step in method.methods:
            yield from _files_of(step)


def _described_rule(rule: Rule, default: str) -> dict[str, Any]:
    """A rule in the form in which the manifest holds it, without the paths of this machine.

    Args:
        rule: the rule.
        default: the name of the default method, which a rule without a method uses.
    """
    described = rule.model_dump(exclude_defaults=True)
    if rule.parameters:
        described["parameters"] = method_class(rule.method or default).portable(rule.parameters)
    return described


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _without_merged_adapter(
    sidecars: tuple[Sidecar, ...], left_out: tuple[LeftOut, ...], adapter: Path
) -> tuple[tuple[Sidecar, ...], tuple[LeftOut, ...]]:
    """Leave out an adapter that lies in the model's own folder and is merged into OUT; loaders would add it once more."""
    merged = {sidecar.name for sidecar in sidecars if sidecar.source.parent.samefile(adapter)}
    merged = {name for name in merged if PurePosixPath(name).name in ADAPTER_FILES}
    dropped = tuple(LeftOut(name, "is merged into the weights") for name in sorted(merged))
    return tuple(sidecar for sidecar in sidecars if sidecar.name not in merged), left_out + dropped


def _sidecars_of_an_adapter(
    sidecars: tuple[Sidecar, ...], left_out: tuple[LeftOut, ...]
) -> tuple[tuple[Sidecar, ...], tuple[LeftOut, ...]]:
    """Leave out the config of FINETUNED, as the adapter is loaded into BASE, and the config of any other adapter."""
    others = {CONFIG_FILE: "an adapter is loaded with BASE's"} | dict.fromkeys(
        ADAPTER_FILES, "belongs to another adapter"
    )
    dropped = tuple(LeftOut(sidecar.name, others[sidecar.name]) for sidecar in sidecars if sidecar.name in others)
    return tuple(sidecar for sidecar in sidecars if sidecar.name not in others), left_out + dropped


def assign_methods(pairing: Pairing, choice: MethodChoice) -> tuple[Pairing, dict[str, Method]]:
    """Choose the method of every tensor.

    Returns:
        The pairing, in which every tensor with a method has the action "filter"; and the methods by the name of the tensor.
    """
    pairs, methods = [], {}
    for pair in pairing.pairs:
        matrix = pair.action == "filter"
        method = choice.method_for(pair.name, matrix=matrix) if matrix or is_shared_vector(pair) else None
        if method is not None:
            methods[pair.name] = method
        pairs.append(pair if method is None else replace(pair, action="filter"))
    return replace(pairing, pairs=tuple(pairs)), methods


def is_shared_vector(pair: TensorPair) -> bool:
    """Whether both sides hold the tensor, in one shape and in floating-point dtypes, entry by entry, and it is not a matrix."""
    if pair.base is None or pair.is_matrix or pair.finetuned.shape != pair.base.shape or not pair.rows:
        return False
    return pair.finetuned.elements > 0 and {pair.finetuned.dtype, pair.base.dtype} <= FLOAT_NAMES
