"""The main job, from two checkpoint folders to a third: plan, run, publish."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from deltamend.checkpoint.architecture import is_expert
from deltamend.checkpoint.checkpoint_folder import Checkpoint, StoredTensor
from deltamend.checkpoint.dtypes import CONFIG_NAMES
from deltamend.checkpoint.file_names import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CARD_FILE,
    CONFIG_FILE,
    FINETUNED_CARD_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
)
from deltamend.checkpoint.hashing import hash_alike, hash_file, tensor_hash
from deltamend.checkpoint.layout import ShardLayout
from deltamend.checkpoint.manifest import (
    FileRecord,
    InputRecord,
    LeftOutRecord,
    Manifest,
    MatrixRepair,
    Output,
    PartRecord,
    RunRecord,
    TensorRecord,
    decode_manifest,
    encode_manifest,
)
from deltamend.checkpoint.model_card import license_of_card, render_model_card
from deltamend.checkpoint.output_place import check_output
from deltamend.checkpoint.shard_writer import ShardWriter
from deltamend.checkpoint.verification import verify
from deltamend.checkpoint.work_folder import WorkFolder, remove_leftovers
from deltamend.errors import UsageError
from deltamend.inputs.pairing import Submatrix, TensorPair
from deltamend.machine.threads import one_thread_each
from deltamend.matrices.buffers import Buffers, row_chunks, same_bytes
from deltamend.matrices.views import Matrix, StoredMatrix
from deltamend.methods.method import Method
from deltamend.progress import Progress
from deltamend.repairing.adapter_layout import encode_config, expert_refusal
from deltamend.repairing.one_matrix import (
    Job,
    Sink,
    Survey,
    copy_rows,
    open_part,
    refuse_damaged,
    repair_matrix,
    repair_parts,
)
from deltamend.repairing.plan import RepairOptions, RepairPlan, out_dtype_name, pair_flops, plan_repair
from deltamend.repairing.rounding import Rounding
from deltamend.repairing.rules import Rule, Vectors, read_rules
from deltamend.repairing.to_adapter import AdapterParts, PartSink
from deltamend.repairing.to_checkpoint import FileSink

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RepairReport:
    """What a repair did.

    Attributes:
        out: the folder that was written.
        manifest: the content of its `deltamend.json`.
        written: False where `resume` found that OUT was whole already.
    """

    out: Path
    manifest: Manifest
    written: bool = True

    @property
    def tensors(self) -> tuple[TensorRecord, ...]:
        """One record for each tensor, in the order of the output's files."""
        return self.manifest.tensors

    @property
    def kept_energy(self) -> float:
        """Σ‖Δ*‖² / Σ‖Δ‖² over all matrices; 1 where every delta is zero."""
        return self.manifest.kept_energy

    @property
    def realised_error(self) -> float:
        """‖cast(W*) − W_base − Δ*‖ / ‖Δ*‖ over all matrices; 0 where Δ* is zero."""
        return self.manifest.realised_error

    @property
    def undone_by_rounding(self) -> float | None:
        """‖cast(W*) − W_base − Δ*‖ / ‖Δ − Δ*‖ over all matrices; None where nothing was taken away or it was not measured."""
        return self.manifest.undone_by_rounding


def repair(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: str | Method = "dg-hard",
    parameters: Mapping[str, object] | None = None,
    include: str | None = None,
    exclude: str | None = None,
    out_dtype: str | None = None,
    max_shard_size: int | str | None = None,
    rules: Sequence[Rule | Mapping[str, object]] = (),
    vectors: Vectors = "finetuned",
    rename: str | None = None,
    split_fused: bool = False,
    output: Output = "checkpoint",
    rounding: Rounding = "nearest",
    device: str = "cpu",
    workers: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> RepairReport:
    """Repair FINETUNED against BASE and write the result to OUT.

    OUT appears whole or not at all. Memory does not grow with the model: each worker holds at most one delta of
    `delta.BLOCK_ELEMENTS` entries and a few squares of a matrix's shorter side.

    Args:
        base: the checkpoint fine-tuning started from: a folder, or a hub id `org/name@revision`.
        finetuned: its descendant; either may be `MODEL+ADAPTER`, a model with a LoRA adapter.
        out: folder to write; it must not exist or be empty, unless `overwrite`.
        method: name of a method, or one made with `get_method`.
        parameters: the method's parameters, when `method` is a name.
        include: regular expression; matrices whose name it does not find are kept as fine-tuned.
        exclude: regular expression; matrices whose name it finds are kept as fine-tuned.
        out_dtype: "bf16", "fp16" or "fp32" for every floating-point tensor; None keeps each tensor's own, and writes the
            factors of an adapter in fp32.
        max_shard_size: bytes, or text such as "5GB"; None keeps the shards of FINETUNED.
        rules: another method or other parameters for some of the tensors; see `rules.Rule`.
        vectors: what parameters that are no matrices follow: "finetuned", "base", or the share of the way to FINETUNED.
        rename: `OLD=NEW`, prefixes of names in BASE and FINETUNED; None finds the rule where no name is the same.
        split_fused: repair query, key and value, or gate and up, that are stored as one weight, one by one.
        output: "checkpoint", or "adapter" for a PEFT LoRA adapter to BASE, which methods that keep a low-rank Δ* can write.
        rounding: how W_base + Δ* is cast to bf16 or fp16: "nearest", or "stochastic", seeded by the tensor's name.
        device: where spectral filters run, "cpu" or a torch device such as "cuda".
        workers: tensors worked on at a time, with one BLAS thread each; None for one a core. The result is the same.
        overwrite: replace what is in OUT, once the new output is whole.
        resume: go on with an unfinished run of the same plan, or do nothing when OUT is already its result.
        progress: called as work ends.

    Returns:
        The report; the same numbers are in OUT/deltamend.json.

    Raises:
        CheckpointError: an input cannot be read, or is quantised.
        PairingError: the inputs do not belong together.
        UsageError: unknown method, or a parameter or option with a value that means nothing.
        FilterError: NaN or Inf in a tensor, or a filter failed; nothing is passed through.
        OutputError: OUT cannot be written.
    """
    options = RepairOptions(
        include=include,
        exclude=exclude,
        out_dtype=out_dtype,
        max_shard_size=max_shard_size,
        rules=read_rules(rules),
        vectors=vectors,
        rename=rename,
        split_fused=split_fused,
        output=output,
        rounding=rounding,
    )
    plan = plan_repair(
        base, finetuned, out, method=method, parameters=parameters, options=options, overwrite=overwrite or resume
    )
    try:
        if resume and (manifest := published_manifest(plan)) is not None:
            remove_leftovers(plan.out)
            return RepairReport(plan.out, manifest, written=False)
        check_output(plan.out, plan.inputs, overwrite=overwrite)
        return run_plan(plan, device=device, workers=workers, resume=resume, overwrite=overwrite, progress=progress)
    finally:
        plan.close()


def run_plan(
    plan: RepairPlan,
    *,
    device: str = "cpu",
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RepairReport:
    """Carry out a plan; arguments and errors as in `repair`.

    A run that fails removes what it had made. One that is interrupted or killed leaves its work folder for `resume`, as
    does one that was whole but could not be put in place.
    """
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    _check_machine(device, count)
    started = time.perf_counter()
    with WorkFolder(plan.out, plan.resume_key, resume=resume) as work:
        try:
            with _Run(plan, work, device, count, progress) as run:
                inputs = run.hash_inputs()
                work.keep_to_inputs(hashlib.sha256("".join(map(str, inputs)).encode()).hexdigest())
                run.survey()
                tensors = run.repair_tensors()
                if plan.adapter is None:
                    weights = run.hash_shards(tensors, inputs[1])
                else:
                    tensors, weights = run.assemble_adapter(tensors)
            manifest = Manifest(
                deltamend=version("deltamend"),
                plan_sha256=plan.sha256,
                method=plan.method.name,
                parameters=plan.method.model_dump(mode="json"),
                options=plan.described_options,
                base=inputs[0],
                finetuned=inputs[1],
                notes=plan.notes,
                only_in_base=plan.pairing.only_in_base,
                left_out=tuple(LeftOutRecord(name=file.name, reason=file.reason) for file in plan.left_out),
                tensors=tensors,
                files=(),
                run=RunRecord(seconds=time.perf_counter() - started, workers=count, versions=_versions()),
            )
            sidecars = _write_sidecars(plan, work, manifest)
            files = sorted([*weights, *sidecars], key=lambda file: file.name)
            text = encode_manifest(manifest.model_copy(update={"files": tuple(files)}))
            work.write_file(MANIFEST_FILE, text)
            for checkpoint in (plan.base, plan.finetuned):
                checkpoint.check_unchanged()
            plan.check_method_files()
        except Exception:
            work.discard()
            raise
        work.publish(overwrite=overwrite)
    return RepairReport(plan.out, decode_manifest(text))


def _check_machine(device: str, workers: int) -> None:
    """Raise UsageError when there is no such device, or no worker."""
    if workers < 1:
        raise UsageError(f"--workers: {workers} cannot work; give 1 or more")
    if device == "cpu":
        return
    import torch  # only here: it takes longer to import than most repairs take

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device: {device!r} cannot be used here ({str(error).splitlines()[0]}); leave it out for the CPU"
        ) from error


class _Run:
    """The workers of one run, and the files they read and write."""

    def __init__(
        self, plan: RepairPlan, work: WorkFolder, device: str, workers: int, progress: Progress | None
    ) -> None:
        self._plan, self._work, self._device, self._progress = plan, work, device, progress
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._local = threading.local()
        self._surveyed: dict[Method, Any] = {}
        self._finished_cost = 0.0
        self._total_cost = sum(_cost(pair) for pair in plan.pairing.pairs)
        self._targets = {tensor.name: tensor for shard in plan.layout.shards for tensor in shard.tensors}
        self._writers: dict[str, ShardWriter] = {}
        self._parts: AdapterParts | None = None
        if plan.adapter is not None:
            dtype = out_dtype_name(plan.options.out_dtype)
            self._parts = AdapterParts(plan.adapter, work.parts, self._targets, dtype, self._stopped)
        with ExitStack() as opening:
            for shard in plan.layout.shards if plan.adapter is None else ():
                writer = self._writers[shard.file] = ShardWriter(work.staged, shard)
                opening.callback(writer.close)
            opening.enter_context(one_thread_each())
            self._executor = opening.enter_context(ThreadPoolExecutor(workers))
            self._resources = opening.pop_all()

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._resources.close()

    def hash_inputs(self) -> tuple[InputRecord, InputRecord]:
        """Hash the weight files of both sides as they are now; `check_unchanged` sees to it that they stay so."""
        base, finetuned = self._plan.base.weight_files, self._plan.finetuned.weight_files
        names = sorted(base.keys() | finetuned.keys())
        hashed = self._map(lambda name: _hash_sides(base.get(name), finetuned.get(name), name), names)
        sides = [tuple(record for pair in hashed if (record := pair[side]) is not None) for side in (0, 1)]
        return (
            InputRecord(name=_folder_name(self._plan.base), files=sides[0]),
            InputRecord(name=_folder_name(self._plan.finetuned), files=sides[1]),
        )

    def survey(self) -> None:
        """Let every method look at all deltas it is going to be given."""
        for method in set(self._plan.methods.values()):
            pairs = [pair for pair in self._plan.pairing.pairs if self._plan.methods.get(pair.name) == method]
            items = [(pair, part) for pair in pairs for part in pair.submatrices or (None,)]
            self._surveyed[method] = method.survey(Survey(items, self._open_part, self._buffers, self._map))

    def repair_tensors(self) -> tuple[TensorRecord, ...]:
        """Repair or copy every tensor that is not finished yet, the costliest first."""
        pairs = sorted(self._plan.pairing.pairs, key=lambda pair: (-_cost(pair), pair.name))
        records = self._map(self._repair_one, pairs)
        by_name = {record.name: record for record in records}
        return tuple(by_name[tensor.name] for shard in self._plan.layout.shards for tensor in shard.tensors)

    def hash_shards(self, tensors: Sequence[TensorRecord], finetuned: InputRecord) -> list[FileRecord]:
        """Hash the finished weight files; one that was copied tensor by tensor has the hash of its original."""
        changed = {record.file for record in tensors if record.outcome in {"filtered", "reverted"}}
        known = {file.name: file for file in finetuned.files}

        def hash_one(shard: ShardLayout) -> FileRecord:
            original = self._plan.finetuned.headers.get(shard.file)
            if any(self._plan.finetuned.is_computed(self._plan.finetuned.tensors[item.name]) for item in shard.tensors):
                original = None
            copied = original is not None and original.text == shard.header and shard.file not in changed
            return known[shard.file] if copied else hash_file(self._work.staged / shard.file, shard.file)

        return self._map(hash_one, self._plan.layout.shards)

    def _map(self, function: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> list[_Result]:
        """Results in the order of the tasks; the first failure stops the rest."""

        def work(task: _Task) -> _Result:
            if self._stopped.is_set():
                raise CancelledError
            return function(task)

        futures = [self._executor.submit(work, task) for task in tasks]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failures = [future.exception() for future in futures if future.done()]
            for failure in failures:
                if failure is not None:
                    raise failure
        except BaseException:
            self._stopped.set()
            raise
        return [future.result() for future in futures]

    def _repair_one(self, pair: TensorPair) -> TensorRecord:
        if self._parts is not None:
            return self._repair_part(pair, self._parts)
        started = time.perf_counter()
        target = self._targets[pair.name]
        writer = self._writers[target.file]
        record = self._work.finished.get(pair.name)
        if record is None or record.xxh3 != tensor_hash(writer.read(target)):
            sink = FileSink(writer, target, self._stopped)
            done = self._apply(pair, sink)
            record = self._record(pair, target, done, sink.xxh3(), started)
            self._work.record(record)
        self._report(pair)
        return record

    def _repair_part(self, pair: TensorPair, parts: AdapterParts) -> TensorRecord:
        """The same for an adapter."""
        started = time.perf_counter()
        record = self._work.finished.get(pair.name)
        if record is None or not parts.is_finished(record):
            with closing(parts.sink(pair)) as sink:
                done = self._apply_part(pair, sink)
                stored, xxh3 = sink.finish()
            target = replace(self._targets[pair.name], file=ADAPTER_FILE, dtype=sink.dtype_name)
            record = self._record(pair, target, (done, ()), xxh3, started).model_copy(update={"adapter": stored})
            self._work.record(record)
        self._report(pair)
        return record

    def _apply_part(self, pair: TensorPair, sink: PartSink) -> MatrixRepair:
        """Write what an adapter needs of one tensor; of a matrix that is as in BASE it needs nothing."""
        matrix = pair.is_matrix
        if pair.action == "filter":
            return repair_matrix(*self._open(pair), sink, self._buffers(), factor_sink=sink if matrix else None)
        equal = self._is_equal(pair)
        if is_expert(pair.name) and not equal:
            raise UsageError(expert_refusal(pair.name))
        if not (matrix and equal):  # what is no matrix is small, and its module may have to be saved whole
            self._apply(pair, sink)
        return MatrixRepair(
            outcome="zero" if equal else "kept", reason="base and fine-tuned are equal" if equal else ""
        )

    def _is_equal(self, pair: TensorPair) -> bool:
        """Whether both sides of a tensor that is not filtered hold the same bytes."""
        if pair.base is None or pair.base.dtype != pair.finetuned.dtype:
            return False
        base = StoredMatrix(self._plan.base, pair.base, self._buffers(), "base")
        finetuned = StoredMatrix(self._plan.finetuned, pair.finetuned, self._buffers(), "finetuned")
        equal = all(same_bytes(base.rows(*span), finetuned.rows(*span)) for span in row_chunks(base.shape))
        if equal:
            refuse_damaged((base, finetuned), pair.name)
        return equal

    def assemble_adapter(self, tensors: Sequence[TensorRecord]) -> tuple[tuple[TensorRecord, ...], list[FileRecord]]:
        """Put the parts of an adapter into its one file, and write its config."""
        if self._parts is None:
            raise AssertionError("the output is a checkpoint")
        records, config = self._parts.assemble(tensors, self._work.staged)
        self._work.write_file(ADAPTER_CONFIG_FILE, encode_config(config))
        return records, [hash_file(self._work.staged / ADAPTER_FILE, ADAPTER_FILE)]

    def _record(
        self,
        pair: TensorPair,
        target: StoredTensor,
        done: tuple[MatrixRepair, tuple[PartRecord, ...]],
        xxh3: str,
        started: float,
    ) -> TensorRecord:
        """The record of a tensor, from what was done to it over all and to its parts."""
        whole, parts = done
        return TensorRecord(
            **whole.model_dump(exclude={"reason"}),
            **_described(pair, target, self._plan.methods.get(pair.name)),
            reason="; ".join(text for text in (pair.reason, whole.reason) if text),
            parts=parts,
            xxh3=xxh3,
            seconds=time.perf_counter() - started,
        )

    def _apply(self, pair: TensorPair, sink: Sink) -> tuple[MatrixRepair, tuple[PartRecord, ...]]:
        """Write one tensor to the sink."""
        if pair.action == "keep":
            finetuned = StoredMatrix(self._plan.finetuned, pair.finetuned, self._buffers(), "finetuned")
            copy_rows(finetuned, (0, finetuned.shape[0]), sink, pair.name, self._buffers())
            return MatrixRepair(outcome="kept", reason=""), ()
        base, finetuned, job = self._open(pair)
        return repair_parts((base, finetuned), pair, job, sink, self._buffers())

    def _open_part(self, item: tuple[TensorPair, Submatrix | None]) -> tuple[Matrix, Matrix, Job]:
        """The same for one part of a tensor, or for all of it."""
        pair, part = item
        base, finetuned, job = self._open(pair)
        return (base, finetuned, job) if part is None else open_part((base, finetuned), job, part, self._buffers())

    def _open(self, pair: TensorPair) -> tuple[StoredMatrix, StoredMatrix, Job]:
        """Both sides of a tensor that is given to a method, and what is to be done with them."""
        if pair.base is None:
            raise AssertionError(f"{pair.name} has no base")
        buffers = self._buffers()
        finetuned = StoredMatrix(self._plan.finetuned, pair.finetuned, buffers, "finetuned")
        base = StoredMatrix(self._plan.base, pair.base, buffers, "base")
        method = self._plan.methods[pair.name]
        rows = pair.rows if pair.is_matrix else finetuned.shape[0]
        surveyed, rounding = self._surveyed.get(method), self._plan.options.rounding
        return (
            base,
            finetuned,
            Job(
                pair.name,
                rows,
                method,
                self._device,
                surveyed,
                pair.update_rank,
                rounding=rounding,
                inputs_of=pair.inputs_of,
            ),
        )

    def _buffers(self) -> Buffers:
        """The memory of this thread."""
        if not hasattr(self._local, "buffers"):
            self._local.buffers = Buffers()
        buffers: Buffers = self._local.buffers
        return buffers

    def _report(self, pair: TensorPair) -> None:
        with self._lock:
            self._finished_cost += _cost(pair)
            share = self._finished_cost / self._total_cost if self._total_cost else 1.0
        if self._progress is not None:
            self._progress(pair.name, min(1.0, share))


def _cost(pair: TensorPair) -> float:
    """Rough time of one tensor, in flops; a byte that is only copied takes about as long as 100 flops."""
    return pair_flops(pair) + 100.0 * pair.finetuned.nbytes


def _described(pair: TensorPair, target: StoredTensor, method: Method | None) -> dict[str, Any]:
    """What the record of a tensor says that is known beforehand."""
    return {
        "name": pair.name,
        "file": target.file,
        "shape": target.shape,
        "dtype": target.dtype,
        "finetuned_dtype": pair.finetuned.output_dtype,
        "base_dtype": None if pair.base is None else pair.base.dtype,
        "action": pair.action,
        "method": None if method is None else method.described(),
        "rows": pair.rows if pair.action == "filter" else 0,
    }


def _write_sidecars(plan: RepairPlan, work: WorkFolder, manifest: Manifest) -> list[FileRecord]:
    """Write every file of the output that is not weights, but for the manifest itself."""
    own_card, license_name = None, None
    for sidecar in plan.sidecars:
        dtype = out_dtype_name(plan.options.out_dtype)
        if sidecar.name == CONFIG_FILE and (dtype is not None or plan.finetuned.config_altered):
            work.write_file(CONFIG_FILE, _config_with_dtype(plan.finetuned.config, dtype))
        else:
            work.copy_file(sidecar.source, sidecar.name)
        if sidecar.name == FINETUNED_CARD_FILE:
            own_card = sidecar.name
            license_name = license_of_card((work.staged / sidecar.name).read_text(encoding="utf-8", errors="replace"))
    if plan.layout.index is not None and plan.adapter is None:
        work.write_file(INDEX_FILE, plan.layout.index.encode())
    work.write_file(CARD_FILE, render_model_card(manifest, own_card=own_card, license_name=license_name).encode())
    weights = {ADAPTER_FILE} if plan.adapter else {shard.file for shard in plan.layout.shards}
    staged = sorted(path for path in work.staged.rglob("*") if path.is_file())
    names = [path.relative_to(work.staged).as_posix() for path in staged]
    return [
        hash_file(path, name) for path, name in zip(staged, names, strict=True) if name not in {*weights, MANIFEST_FILE}
    ]


def _config_with_dtype(config: Mapping[str, object], dtype: str | None) -> bytes:
    """config.json with the dtype the weights now have; transformers wrote `torch_dtype` before version 5."""
    field = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    stated = {} if dtype is None else {field: CONFIG_NAMES[dtype]}
    return (json.dumps({**config, **stated}, indent=2) + "\n").encode()


def published_manifest(plan: RepairPlan) -> Manifest | None:
    """The manifest of OUT when OUT is already the result of this plan on these very inputs, and undamaged."""
    try:
        manifest = decode_manifest((plan.out / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if manifest.plan_sha256 != plan.sha256 or verify(plan.out):
        return None
    found = [
        [hash_file(path, name) for name, path in side.weight_files.items()] for side in (plan.base, plan.finetuned)
    ]
    return manifest if [list(manifest.base.files), list(manifest.finetuned.files)] == found else None


def _hash_sides(base: Path | None, finetuned: Path | None, name: str) -> tuple[FileRecord | None, FileRecord | None]:
    """Hash the files of one name; None on a side that has none."""
    if base is not None and finetuned is not None:
        return hash_alike(base, finetuned, name)
    return (hash_file(base, name) if base else None, hash_file(finetuned, name) if finetuned else None)


def _folder_name(checkpoint: Checkpoint) -> str:
    """The folder's own name: the manifest holds no path of anybody's machine."""
    models = [
        checkpoint.source or checkpoint.folder,
        *([] if checkpoint.adapter is None else checkpoint.adapter.folders),
    ]
    names = [Path(os.path.abspath(model)).name for model in models]  # noqa: PTH100 - resolve() would name a link's target
    return os.fsencode("+".join(names)).decode(errors="replace")


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("deltamend", "ml_dtypes", "numpy", "scipy")}
    return {"python": platform.python_version(), **packages}
