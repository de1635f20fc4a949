"""The plan of a repair: everything that is decided before a weight is read."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
from threadpoolctl import threadpool_limits

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.checkpoint.dtypes import FLOAT_NAMES, OUT_DTYPES
from deltamend.checkpoint.file_names import ADAPTER_CONFIG_FILE, CONFIG_FILE
from deltamend.checkpoint.hashing import hash_file
from deltamend.checkpoint.layout import Layout, plan_layout
from deltamend.checkpoint.manifest import Output
from deltamend.checkpoint.output_place import check_output
from deltamend.checkpoint.sidecars import LeftOut, Sidecar, list_sidecars, with_tokenizer_of
from deltamend.errors import CheckpointError, UsageError
from deltamend.inputs.open_models import open_pair
from deltamend.inputs.pairing import Pairing, TensorPair
from deltamend.matrices.delta import BLOCK_ELEMENTS
from deltamend.methods.hybrid import Hybrid
from deltamend.methods.method import Method
from deltamend.methods.registry import method_class
from deltamend.repairing.adapter_layout import AdapterPlan, plan_adapter
from deltamend.repairing.rounding import Rounding
from deltamend.repairing.rules import MethodChoice, Rule, Vectors

_WRITE_BYTES_PER_SECOND = 0.4e9  # to a fresh file on the machine this was measured on
_RESIDENT_BYTES = 100 << 20  # Python with numpy and scipy loaded
_FACTOR_BYTES = 64 << 20  # a piece of a factor in fp64, rounded, and what the rounding did


@dataclass(frozen=True)
class RepairOptions:
    """What can be asked for beside the method; see `repair` for the meaning of each."""

    include: str | None = None
    exclude: str | None = None
    out_dtype: str | None = None
    max_shard_size: int | str | None = None
    rules: tuple[Rule, ...] = ()
    vectors: Vectors = "finetuned"
    rename: str | None = None
    split_fused: bool = False
    output: Output = "checkpoint"
    rounding: Rounding = "nearest"


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take on this machine, within a factor of about two."""

    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class RepairPlan:
    """What will be done. Both checkpoints stay open until `close`.

    `method` is the default one, `methods` that of each tensor whose action is "filter". `adapter` is None for a checkpoint;
    for an adapter `layout` is that of the checkpoint it stands for.
    """

    base: Checkpoint
    finetuned: Checkpoint
    out: Path
    method: Method
    methods: Mapping[str, Method]
    options: RepairOptions
    pairing: Pairing
    layout: Layout
    sidecars: tuple[Sidecar, ...]
    left_out: tuple[LeftOut, ...]
    adapter: AdapterPlan | None = None

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
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    @cached_property
    def resume_key(self) -> str:
        """Identifies the plan and these very files, by their times; what `--resume` compares."""
        times = [*self.base.modification_times(), *self.finetuned.modification_times()]
        return hashlib.sha256(json.dumps([self.sha256, times]).encode()).hexdigest()

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
        return (*self.base.notes, *self.finetuned.notes)

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

    def estimate(self, workers: int) -> Estimate:
        """Expected time and memory with `workers` workers, from a quick measurement of this machine's arithmetic."""
        matrices = [pair for pair in self.pairing.pairs if pair.action == "filter" and pair.is_matrix]
        seconds = sum(pair_flops(pair) for pair in matrices) / _flops_per_second() / workers
        seconds += self.bytes_to_write / _WRITE_BYTES_PER_SECOND
        largest = max((_matrix_bytes(pair) for pair in matrices), default=0)
        largest += 0 if self.adapter is None else _FACTOR_BYTES
        return Estimate(seconds, _RESIDENT_BYTES + workers * largest)

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
        self.base.close()
        self.finetuned.close()


def plan_repair(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: str | Method = "dg-hard",
    parameters: Mapping[str, object] | None = None,
    options: RepairOptions | None = None,
    overwrite: bool = False,
) -> RepairPlan:
    """Open both checkpoints and decide everything, without reading a weight or writing a byte.

    Arguments and errors are those of `repair`. The caller closes the plan.
    """
    wanted = options or RepairOptions()
    check_output_options(wanted)
    choice = MethodChoice(method, parameters, wanted.rules, wanted.vectors)
    with ExitStack() as opened:
        pair = opened.enter_context(
            open_pair(
                base,
                finetuned,
                include=wanted.include,
                exclude=wanted.exclude,
                rename=wanted.rename,
                split_fused=wanted.split_fused,
            )
        )
        ours, theirs = pair.base, pair.finetuned
        layout = plan_layout(theirs, out_dtype=out_dtype_name(wanted.out_dtype), max_shard_size=wanted.max_shard_size)
        sidecars, left_out = list_sidecars(theirs.folder, frozenset(theirs.headers))
        if theirs.adapter is not None:
            sidecars = with_tokenizer_of(sidecars, theirs.adapter.folder)
        pairing, methods = assign_methods(pair.pairing, choice)
        adapter = None
        if wanted.output == "adapter":
            adapter = plan_adapter(ours, os.fspath(base), pairing, methods)
            sidecars, left_out = _sidecars_of_an_adapter(sidecars, left_out)
        plan = RepairPlan(
            ours, theirs, Path(out), choice.default, methods, wanted, pairing, layout, sidecars, left_out, adapter
        )
        check_output(plan.out, plan.inputs, overwrite=overwrite)
        opened.pop_all()
    return plan


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


def check_output_options(options: RepairOptions) -> None:
    """Refuse options of the output that are unknown or exclude each other.

    Raises:
        UsageError: they do.
    """
    for option, value, known in (
        ("--as", options.output, get_args(Output)),
        ("--rounding", options.rounding, get_args(Rounding)),
    ):
        if value not in known:
            raise UsageError(f"{option}: there is no {value!r}; give {' or '.join(known)}")
    if options.output == "adapter" and options.max_shard_size is not None:
        raise UsageError("--max-shard-size: an adapter is one file; leave it out")
    if options.output == "adapter" and options.rounding != "nearest":
        raise UsageError("--rounding: an adapter holds factors, not rounded weights; leave it out")


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


def out_dtype_name(text: str | None) -> str | None:
    """The safetensors name of an `--out-dtype`.

    Raises:
        UsageError: it is none of those that can be written.
    """
    if text is not None and text not in OUT_DTYPES:
        raise UsageError(f"--out-dtype: no dtype {text!r}; there are {', '.join(OUT_DTYPES)}")
    return None if text is None else OUT_DTYPES[text]


def is_shared_vector(pair: TensorPair) -> bool:
    """Whether it is a tensor of both sides that is no matrix but can be added to."""
    if pair.base is None or pair.is_matrix or pair.finetuned.shape != pair.base.shape:
        return False
    return pair.finetuned.elements > 0 and {pair.finetuned.dtype, pair.base.dtype} <= FLOAT_NAMES


def pair_flops(pair: TensorPair) -> float:
    """Floating-point operations of filtering one pair: 2·m·n·min(m, n), one GEMM-equivalent pass."""
    if pair.action != "filter" or not pair.is_matrix:
        return 0.0
    return sum(2.0 * m * n * min(m, n) for m, n in pair.shapes)


def _matrix_bytes(pair: TensorPair) -> int:
    """Most memory one worker needs for a matrix: a block in fp32, and three squares of the shorter side in fp64.

    A wide matrix that is cut is read in columns, for which a block of both sides and of the output are held as well.
    """

    def needed(m: int, n: int) -> int:
        blocks = 3 if m < n and m * n > BLOCK_ELEMENTS else 1
        return 4 * blocks * min(m * n, BLOCK_ELEMENTS) + 3 * 8 * min(m, n) ** 2

    return max(needed(*shape) for shape in pair.shapes)


def _flops_per_second(size: int = 768) -> float:
    """What one core does in an fp32 matrix product, halved: a filter does about two passes' worth of work."""
    square = np.ones((size, size), dtype=np.float32)
    with threadpool_limits(1):
        square @ square  # the first product starts the library
        started = time.perf_counter()
        square @ square
        return size**3 / (time.perf_counter() - started)
