"""Decide everything about a repair before a weight is read or a byte is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.checkpoint.file_names import ADAPTER_CONFIG_FILE, CONFIG_FILE
from deltamend.checkpoint.hashing import hash_file
from deltamend.checkpoint.layout import Layout, plan_layout
from deltamend.checkpoint.output_place import check_output
from deltamend.checkpoint.sidecars import LeftOut, Sidecar, list_sidecars, with_tokenizer_of
from deltamend.errors import CheckpointError, UsageError, option
from deltamend.inputs.open_models import OpenPair
from deltamend.inputs.pairing import Pairing, TensorPair
from deltamend.machine.digests import json_sha256
from deltamend.methods.hybrid import Hybrid
from deltamend.methods.method import Method
from deltamend.methods.registry import method_class
from deltamend.repairing.adapter_layout import AdapterPlan, plan_adapter
from deltamend.repairing.estimate import RunEstimate, estimate_run
from deltamend.repairing.options import AUTO, Recommendation, RepairOptions, with_recommendation
from deltamend.repairing.rules import MethodChoice, Rule

Recommend = Callable[[], Recommendation]
"""Finds the method that `auto` stands for. It is called once everything else has been checked, as it may take minutes."""


@dataclass(frozen=True)
class RepairPlan:
    """What will be done. A context manager that closes both checkpoints, which stay open until then.

    Attributes:
        pair: both checkpoints, and which of their tensors belong together.
        out: the folder that will be written.
        options: everything that was asked for, with the recommended method in place of "auto".
        method: the method of every matrix that no rule gives another one.
        methods: the method of each tensor whose action is "filter".
        pairing: the tensors, with the actions that the methods make of them.
        layout: the weight files; for an adapter, those of the checkpoint that it stands for.
        sidecars: the files of FINETUNED that are copied.
        left_out: its files that are not, and why.
        adapter: what goes where in an adapter; None for a checkpoint.
        recommendation: what "auto" was found to stand for; None where a method was named.
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
        """Hash of the options, the sidecar files and what is known of the weights without reading them; the same anywhere."""
        described: dict[str, Any] = {
            "deltamend": version("deltamend"),
            "method": [self.method.name, self.method.model_dump(mode="json")],
            "methods": sorted((name, method.described()) for name, method in self.methods.items()),
            "options": self.described_options,
            "base_name": None if self.adapter is None else self.adapter.base_name,
            "sidecars": [(sidecar.name, hash_file(sidecar.source, sidecar.name).sha256) for sidecar in self.sidecars],
            "parts": [
                (pair.name, pair.rows, [astuple(part) for part in pair.submatrices]) for pair in self.pairing.pairs
            ],
        }
        for side, checkpoint in (("base", self.base), ("finetuned", self.finetuned)):
            tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: tensor.name)
            described[side] = [(item.name, item.dtype, item.shape, item.file, item.start) for item in tensors]
            adapter = {} if checkpoint.adapter is None else checkpoint.adapter.config
            described[f"{side} configs"] = [dict(checkpoint.config), dict(adapter)]
        return json_sha256(described)

    @cached_property
    def resume_key(self) -> str:
        """Identifies the plan and these very files, by their times; what `--resume` compares."""
        times = [*self.base.modification_times(), *self.finetuned.modification_times()]
        return json_sha256([self.sha256, times])

    @property
    def inputs(self) -> list[Path]:
        """Every folder and file the run reads, which OUT must not replace."""
        return [*self.base.folders, *self.finetuned.folders, *self.method_files]

    @cached_property
    def method_files(self) -> dict[Path, tuple[int, int]]:
        """Files that parameters of methods name, with their size and time as of now."""
        methods = (self.method, *self.methods.values())
        return {path: _size_and_time(path) for method in methods for path in _files_of(method)}

    def check_method_files(self) -> None:
        """Raise CheckpointError when one of them was written to since the plan was made."""
        for path, before in self.method_files.items():
            if _size_and_time(path) != before:
                raise CheckpointError(f"{path}: changed during the run; start again when nothing writes to it")

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of how the inputs are read."""
        return self.pair.notes

    @property
    def described_options(self) -> dict[str, str | None]:
        """The options as text, for the manifest."""
        size = self.options.max_shard_size
        return {
            "include": self.options.include,
            "exclude": self.options.exclude,
            "out_dtype": self.options.out_dtype,
            "max_shard_size": None if size is None else str(size),
            "rules": json.dumps([_described_rule(rule, self.method.name) for rule in self.options.rules]),
            "vectors": str(self.options.vectors),
            "rename": self.options.rename,
            "split_fused": str(self.options.split_fused),
            "output": self.options.output,
            "rounding": self.options.rounding,
        }

    @property
    def bytes_to_write(self) -> int:
        """Size of the output's weights and copied files."""
        return self.layout.nbytes + sum(sidecar.size for sidecar in self.sidecars)

    def estimate(self, workers: int) -> RunEstimate:
        """Expected time and memory with this many workers."""
        return estimate_run(self.pairing.pairs, self.bytes_to_write, workers, adapter=self.adapter is not None)

    def described(self, workers: int) -> dict[str, Any]:
        """The plan for a script: what `--dry-run --json` prints."""
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
    """Decide everything about a repair, without reading a weight or writing a byte.

    Args:
        pair: both checkpoints; the plan closes them when it is closed.
        out: the folder to write.
        options: what is asked for; which matrices are selected is taken from the pair.
        overwrite: whether OUT may exist.
        recommend: what finds the method in place of "auto".

    Raises:
        UsageError: there is no such method, or an option is invalid.
        OutputError: OUT exists, or is not a place that can be written to.
    """
    options = options.model_copy(update=dict(pair.selection))
    layout = plan_layout(pair.finetuned, out_dtype=options.dtype_name, max_shard_size=options.max_shard_size)
    sidecars, left_out = list_sidecars(pair.finetuned.folder, frozenset(pair.finetuned.headers))
    if pair.finetuned.adapter is not None:
        sidecars = with_tokenizer_of(sidecars, pair.finetuned.adapter.folder)
    if options.output == "adapter":
        sidecars, left_out = _sidecars_of_an_adapter(sidecars, left_out)
    advice = None
    if options.method == AUTO:
        check_output(Path(out), [*pair.base.folders, *pair.finetuned.folders], overwrite=overwrite)
        # A rule with a method that does not exist is found before the base is read for minutes, not after.
        MethodChoice("none", None, options.rules, options.vectors)
        advice = _recommended(recommend)
        options = with_recommendation(options, advice)
    choice = MethodChoice(options.method, options.parameters, options.rules, options.vectors)
    pairing, methods = assign_methods(pair.pairing, choice)
    adapter = plan_adapter(pair.base, pair.called[0], pairing, methods) if options.output == "adapter" else None
    plan = RepairPlan(
        pair, Path(out), options, choice.default, methods, pairing, layout, sidecars, left_out, adapter, advice
    )
    check_output(plan.out, plan.inputs, overwrite=overwrite)
    return plan


def _recommended(recommend: Recommend | None) -> Recommendation:
    if recommend is None:
        raise UsageError(f"{option('method', AUTO)}: nothing can recommend a method here; name one")
    return recommend()


def _files_of(method: Method) -> Iterator[Path]:
    """The files that its parameters name, and those of its steps."""
    yield from (value for _, value in method if isinstance(value, Path))
    if isinstance(method, Hybrid):
        for step in method.methods:
            yield from _files_of(step)


def _described_rule(rule: Rule, default: str) -> dict[str, Any]:
    """A rule for the manifest, which holds no path of anybody's machine; without a method it is of the default one."""
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


def _sidecars_of_an_adapter(
    sidecars: tuple[Sidecar, ...], left_out: tuple[LeftOut, ...]
) -> tuple[tuple[Sidecar, ...], tuple[LeftOut, ...]]:
    """Leave out what belongs to a model or another adapter: the model is BASE, with BASE's config."""
    others = {CONFIG_FILE: "an adapter is loaded with BASE's", ADAPTER_CONFIG_FILE: "belongs to another adapter"}
    dropped = tuple(LeftOut(sidecar.name, others[sidecar.name]) for sidecar in sidecars if sidecar.name in others)
    return tuple(sidecar for sidecar in sidecars if sidecar.name not in others), left_out + dropped


def assign_methods(pairing: Pairing, choice: MethodChoice) -> tuple[Pairing, dict[str, Method]]:
    """Give every matrix its method, and those of the other tensors that have one; the pairing then says so."""
    pairs, methods = [], {}
    for pair in pairing.pairs:
        matrix = pair.action == "filter"
        method = choice.method_for(pair.name, matrix=matrix) if matrix or is_shared_vector(pair) else None
        if method is not None:
            methods[pair.name] = method
        pairs.append(pair if method is None else replace(pair, action="filter"))
    return replace(pairing, pairs=tuple(pairs)), methods


def is_shared_vector(pair: TensorPair) -> bool:
    """Whether it is a tensor of both sides that is no matrix but can be added to."""
    if pair.base is None or pair.is_matrix or pair.finetuned.shape != pair.base.shape:
        return False
    return pair.finetuned.elements > 0 and {pair.finetuned.dtype, pair.base.dtype} <= FLOAT_NAMES
