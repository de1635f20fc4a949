"""A repair as a PEFT LoRA adapter: which module holds what, the factors of every Δ*, and the file they end up in.

Δ* of a spectral filter is exactly low-rank, so its factors lose nothing, where casting W_base + Δ* to bf16 can lose half
of it. Names, layouts and the matching of patterns are those of peft (`tuners/lora/layer.py`, `utils/save_and_load.py`,
`get_pattern_key` in `tuners/tuners_utils.py`; read at 0.21.2).
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deltamend.checkpoint.architecture import TOKEN_EMBEDDINGS, has_head, leaf_of, module_of, tied_head
from deltamend.checkpoint.dtypes import NUMPY_DTYPES, all_finite, itemsize
from deltamend.checkpoint.hashing import tensor_hash
from deltamend.checkpoint.layout import ShardLayout
from deltamend.checkpoint.manifest import AdapterRecord, TensorRecord
from deltamend.checkpoint.open import Checkpoint, StoredTensor
from deltamend.checkpoint.pairing import Pairing, TensorPair
from deltamend.checkpoint.safetensors_header import encode_header
from deltamend.checkpoint.sidecars import ADAPTER_FILE
from deltamend.checkpoint.work_folder import ShardWriter
from deltamend.delta import Array, DeltaBlocks, bytes_of, norm_squared, row_chunks
from deltamend.errors import FilterError, OutputError, UsageError
from deltamend.file_sink import FileSink
from deltamend.matrix_repair import Norms
from deltamend.methods.method import KeptDelta, Method
from deltamend.methods.registry import all_methods
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.filter import SpectralFilter

Kind = Literal["linear", "conv1d", "embedding", "other"]
"""What a module is to peft. `other`: it is saved whole, which any module can be."""

_PREFIX = "base_model.model."
_EMBEDDINGS = TOKEN_EMBEDDINGS | {"wpe"}
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_MODULES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
_BODIES = _EMBEDDINGS | {"h", "layers"}
"""First parts of names by which a body that was saved without its language-model head is known."""
_SLICE_ELEMENTS = 1 << 21
_DUMMY_TARGET = "dummy-target-modules"  # peft's own name for "no module", which it refuses as an empty list


@dataclass(frozen=True)
class FactorPlace:
    """One stored factor of Δ* = L·R, L (m, rank) and R (rank, n): its key, which of the two, and if it is transposed."""

    key: str
    side: Literal["left", "right"]
    by_rank: bool
    """Whether the rank is the first axis of what is stored."""


@dataclass(frozen=True)
class AdapterPlan:
    """What is known of the adapter before a weight is read.

    Attributes:
        base_name: BASE as it was given, for `base_model_name_or_path`.
        task_type: peft's name of the task, or None.
        kinds: of the module of every matrix, by the name of the tensor.
        tied: the embedding whose matrix the head shares, and the head's module; None where no head is tied.
    """

    base_name: str
    task_type: str | None
    kinds: Mapping[str, Kind]
    tied: tuple[str, str] | None

    def factor_places(self, name: str) -> tuple[FactorPlace, ...]:
        """Where the factors of a matrix are stored; twice where its embedding and the head share it."""
        module = _PREFIX + module_of(name)
        match self.kinds.get(name, "other"):
            case "linear":
                return _linear(module)
            case "conv1d":
                return (
                    FactorPlace(f"{module}.lora_A.weight", "left", by_rank=True),
                    FactorPlace(f"{module}.lora_B.weight", "right", by_rank=False),
                )
            case "embedding":
                own = (
                    FactorPlace(f"{module}.lora_embedding_A", "left", by_rank=True),
                    FactorPlace(f"{module}.lora_embedding_B", "right", by_rank=False),
                )
                return own + (_linear(_PREFIX + self.tied[1]) if self.tied and self.tied[0] == name else ())
            case _:
                return ()


def _linear(module: str) -> tuple[FactorPlace, ...]:
    return (
        FactorPlace(f"{module}.lora_A.weight", "right", by_rank=True),
        FactorPlace(f"{module}.lora_B.weight", "left", by_rank=False),
    )


def plan_adapter(base: Checkpoint, base_name: str, pairing: Pairing, methods: Mapping[str, Method]) -> AdapterPlan:
    """Decide what each module is, and refuse what an adapter cannot hold.

    Raises:
        UsageError: a method whose Δ* has full rank, or a model whose modules are not those its tensors are named after.
    """
    for pair in pairing.pairs:
        _refuse(pair, methods.get(pair.name))
    if base.config.get("is_encoder_decoder"):
        raise UsageError("--as adapter: encoder-decoder models share their embedding; write --as checkpoint")
    first = next(iter(base.tensors), "")
    if has_head(base.config) and first.partition(".")[0] in _BODIES:
        raise UsageError(
            f"--as adapter: BASE was saved without its head (it names {first!r}), so that an adapter would not find its "
            "modules; save it again with save_pretrained, or write --as checkpoint"
        )
    model_type = str(base.config.get("model_type"))
    matrices = [pair for pair in pairing.pairs if len(pair.finetuned.shape) == 2]
    kinds: dict[str, Kind] = {pair.name: _kind(pair.name, model_type) for pair in matrices}
    task = "CAUSAL_LM" if has_head(base.config) and "vision_config" not in base.config else None
    return AdapterPlan(base_name, task, kinds, tied_head(base.config, base.tensors))


def _refuse(pair: TensorPair, method: Method | None) -> None:
    instead = "write --as checkpoint"
    if method is not None and len(pair.finetuned.shape) == 2 and not method.low_rank:
        able = ", ".join(name for name, kind in all_methods().items() if kind.low_rank)
        raise UsageError(
            f"--as adapter: what {method.name} keeps of a matrix is not low-rank; use one of {able}, or {instead}"
        )
    if pair.base is None:
        raise UsageError(f"--as adapter: BASE has no tensor {pair.name!r} to add to; {instead}")
    if pair.base.shape != pair.finetuned.shape:
        raise UsageError(
            f"--as adapter: tensor {pair.name!r} has {pair.base.shape[0]} rows in BASE and {pair.finetuned.shape[0]} in "
            f"FINETUNED, and an adapter cannot resize it; {instead}"
        )
    if ".experts." in pair.name and pair.action == "filter":
        raise UsageError(
            f"--as adapter: {pair.name!r} belongs to an expert, which is loaded under another name than it is stored; {instead}"
        )


def _kind(name: str, model_type: str) -> Kind:
    leaf = leaf_of(module_of(name))
    if leaf_of(name) != "weight":
        return "other"
    if leaf in _EMBEDDINGS:
        return "embedding"
    if "emb" in leaf and leaf != "embed_out":  # an embedding by another name, or not
        return "other"
    return "conv1d" if model_type in _CONV1D_MODELS and leaf in _CONV1D_MODULES else "linear"


class AdapterParts:
    """The parts of an adapter in the work folder, one file for each tensor: their sizes are known only once it is filtered.

    Args:
        plan: what goes where.
        folder: where the parts are; they stay there until the work folder goes.
        order: the names of all tensors, in the order in which they will lie in the adapter.
        dtype: safetensors name of the dtype of everything; None for fp32 factors (fp64 where FINETUNED is fp64), and
            FINETUNED's bytes where nothing is filtered.
        stopped: set when the run is to end.
    """

    def __init__(
        self, plan: AdapterPlan, folder: Path, order: Iterable[str], dtype: str | None, stopped: threading.Event
    ) -> None:
        self.plan = plan
        self.dtype = dtype
        self.stopped = stopped
        self._order = {name: index for index, name in enumerate(order)}
        self._folder = folder

    def path(self, name: str) -> Path:
        """The file of one tensor's part."""
        return self._folder / f"{self._order[name]:06d}"

    def is_finished(self, record: TensorRecord) -> bool:
        """Whether the part a journal speaks of is there and undamaged."""
        return record.adapter is not None and tensor_hash(_pieces(self.path(record.name))) == record.xxh3

    def sink(self, pair: TensorPair) -> PartSink:
        """The sink of one tensor; to be closed."""
        return PartSink(self, pair)

    def assemble(self, records: Sequence[TensorRecord], out: Path) -> tuple[tuple[TensorRecord, ...], dict[str, Any]]:
        """Write the adapter's file from the parts.

        Returns:
            The records, saying under which keys each tensor is stored, and the content of adapter_config.json.

        Raises:
            OutputError: the disk is full, or a parameter has changed that belongs to no module peft can save.
        """
        chosen, config = _arrange(records, self.plan)
        placed = [(part, record) for record in records for part in chosen[record.name]]
        placed.sort(key=lambda item: -itemsize(item[0].dtype))  # each lies at a multiple of its item, as readers need
        described = [(part.key, part.dtype, part.shape) for part, _ in placed]
        header, offsets = encode_header(described, {"format": "pt"})
        tensors = tuple(StoredTensor(key, dtype, shape, ADAPTER_FILE, *offsets[key]) for key, dtype, shape in described)
        size = tensors[-1].stop if tensors else len(header)
        with closing(ShardWriter(out, ShardLayout(ADAPTER_FILE, header, tensors, size))) as writer:
            for tensor, (part, record) in zip(tensors, placed, strict=True):
                position = 0
                for piece in _pieces(self.path(record.name), part.start, tensor.nbytes):
                    if self.stopped.is_set():
                        raise CancelledError
                    writer.write(tensor, position, memoryview(piece))
                    position += len(piece)
        named = tuple(
            record.model_copy(
                update={
                    "adapter": tuple(
                        AdapterRecord(key=part.key, shape=part.shape, dtype=part.dtype, xxh3=part.xxh3)
                        for part in chosen[record.name]
                    )
                }
            )
            for record in records
        )
        return named, config


@dataclass(frozen=True)
class _Placed:
    """One tensor of the adapter: what its record says, and from which byte of the part its bytes lie."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    xxh3: str
    start: int


class PartSink:
    """Takes one tensor of an adapter: its factors where Δ* is low-rank, nothing where Δ* = 0, else all of it.

    As `FactorSink`; the dtype of what is written whole is known once the outcome is.
    """

    def __init__(self, parts: AdapterParts, pair: TensorPair) -> None:
        self._parts, self._pair = parts, pair
        self._places = parts.plan.factor_places(pair.name)
        self._wide = "F64" if pair.finetuned.dtype == "F64" else "F32"
        self._whole_dtype = self._wide if pair.action == "filter" and not self._places else pair.finetuned.dtype
        if parts.dtype is not None and pair.finetuned.dtype in {"BF16", "F16", "F32", "F64"}:
            self._wide = self._whole_dtype = parts.dtype
        self._writer: ShardWriter | None = None
        self._whole: FileSink | None = None
        self._records: tuple[AdapterRecord, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Sink.dtype`."""
        return NUMPY_DTYPES[self._whole_dtype]

    @property
    def dtype_name(self) -> str:
        """The safetensors name of the dtype of what is stored."""
        return self._records[0].dtype if self._records else self._whole_dtype

    def write_rows(self, start: int, values: Array) -> None:
        """See `Sink.write_rows`."""
        self._open_whole().write_rows(start, values)

    def write_columns(self, start: int, values: Array) -> None:
        """See `Sink.write_columns`."""
        self._open_whole().write_columns(start, values)

    def take_factors(self, delta: DeltaBlocks, kept: KeptDelta) -> Norms | None:
        """See `FactorSink.take_factors`."""
        if kept.outcome == "reverted":
            return Norms(delta=sum(_energy(block.values) for block in delta), unmoved=None)
        if kept.outcome != "filtered":
            return None
        found = kept.spectrum
        if found is None or found.basis is None:
            raise OutputError(f"tensor {self._pair.name!r}: its method gave no factors; write --as checkpoint")
        if not self._places or found.rank * sum(found.shape) > math.prod(found.shape):
            self._whole_dtype = self._wide  # the matrix itself is smaller than its factors
            return None
        return self._write_factors(delta, found)

    def finish(self) -> tuple[tuple[AdapterRecord, ...], str]:
        """What was written, and the hash of the part; call it once all of it is."""
        if self._whole is not None:
            xxh3 = self._whole.xxh3()
            key = _PREFIX + self._pair.name
            shape = self._pair.finetuned.shape
            return (AdapterRecord(key=key, shape=shape, dtype=self._whole_dtype, xxh3=xxh3),), xxh3
        return self._records, tensor_hash(_pieces(self._parts.path(self._pair.name)))

    def close(self) -> None:
        """Close the part's file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[StoredTensor, ...]:
        """Make the part's file for these tensors (name, dtype, shape), one after another."""
        path = self._parts.path(self._pair.name)
        stored, position = [], 0
        for name, dtype, shape in tensors:
            nbytes = math.prod(shape) * itemsize(dtype)
            stored.append(StoredTensor(name, dtype, shape, path.name, position, position + nbytes))
            position += nbytes
        path.unlink(missing_ok=True)
        self._writer = ShardWriter(path.parent, ShardLayout(path.name, b"", tuple(stored), position))
        return tuple(stored)

    def _open_whole(self) -> FileSink:
        if self._whole is None:
            (tensor,) = self._open([(self._pair.name, self._whole_dtype, self._pair.finetuned.shape)])
            if self._writer is None:
                raise AssertionError("the part's file was just opened")
            self._whole = FileSink(self._writer, tensor, self._parts.stopped)
        return self._whole

    def _write_factors(self, delta: DeltaBlocks, found: SpectralFilter) -> Norms:
        """Write L and R with √s of the singular values on each, and measure what their rounding does to L·R."""
        m, n = found.shape
        lengths = {"left": m, "right": n}
        dtype = self._wide
        shapes = [
            (found.rank, lengths[place.side]) if place.by_rank else (lengths[place.side], found.rank)
            for place in self._places
        ]
        stored = self._open([(place.key, dtype, shape) for place, shape in zip(self._places, shapes, strict=True)])
        short, long = ("left", "right") if found.wide else ("right", "left")
        strengths = np.sqrt(found.singular_values * found.gains)
        basis = np.asarray(found.basis, np.float64)
        product = _Product(basis * strengths, NUMPY_DTYPES[dtype], self._pair.name)
        self._write_side(stored, short, 0, product.short.T)
        norms = Norms(unmoved=None)
        for start, _, values in delta:
            norms.delta += _energy(values)
            for first, part in _slices(values, found):
                exact = found.coefficients(part) * (strengths / found.singular_values)[:, None]
                self._write_side(stored, long, start + first, product.add(exact))
        product.measure(norms)
        if self._writer is None:
            raise AssertionError("the part's file was opened above")
        self._records = tuple(
            AdapterRecord(key=tensor.name, shape=tensor.shape, dtype=dtype, xxh3=tensor_hash(self._writer.read(tensor)))
            for tensor in stored
        )
        return norms

    def _write_side(self, stored: Sequence[StoredTensor], side: str, start: int, values: Array) -> None:
        """Write `values` (rank, length), which begin at `start` of the side, wherever that side is stored."""
        if self._parts.stopped.is_set():
            raise CancelledError
        if self._writer is None:
            raise AssertionError("the part's file is opened first")
        size = values.dtype.itemsize
        for place, tensor in zip(self._places, stored, strict=True):
            if place.side != side:
                continue
            if not place.by_rank:
                self._writer.write(tensor, start * len(values) * size, bytes_of(np.ascontiguousarray(values.T)))
                continue
            for row, part in enumerate(np.ascontiguousarray(values)):
                self._writer.write(tensor, (row * tensor.shape[1] + start) * size, bytes_of(part))


class _Product:
    """The product of two rounded factors against that of the exact ones, from k×k squares alone.

    ‖SᵣLᵣ − SL‖² = ‖dS·Lᵣ + S·dL‖², with dS = Sᵣ − S and dL = Lᵣ − L: nothing cancels, so that fp32 squares will do.
    """

    def __init__(self, short: FloatArray, dtype: np.dtype[Any], name: str) -> None:
        self._dtype, self._name = dtype, name
        self._exact = short
        self.short = self._cast(short)
        rank = short.shape[1]
        self._long, self._cross, self._change = (np.zeros((rank, rank)) for _ in range(3))
        self._energies = np.zeros(rank)

    def add(self, exact: FloatArray) -> Array:
        """Round the next columns of L, shape (rank, length), and take them into account."""
        rounded = self._cast(exact)
        written = rounded.astype(np.float32)
        change = (rounded.astype(np.float64) - exact).astype(np.float32)
        self._long += written @ written.T
        self._cross += written @ change.T
        self._change += change @ change.T
        self._energies += np.einsum("ij,ij->i", exact, exact, dtype=np.float64)
        return rounded

    def measure(self, norms: Norms) -> None:
        """Fill in ‖Δ*‖², the norm of what is stored, and its distance to Δ*."""
        rounded = self.short.astype(np.float64)
        change = rounded - self._exact
        norms.kept = float(np.sum(np.einsum("ij,ij->j", self._exact, self._exact) * self._energies))
        norms.realised = float(np.sum((rounded.T @ rounded) * self._long))
        lost = np.sum((change.T @ change) * self._long) + 2.0 * np.sum((change.T @ self._exact) * self._cross)
        norms.lost = max(0.0, float(lost + np.sum((self._exact.T @ self._exact) * self._change)))

    def _cast(self, values: FloatArray) -> Array:
        with np.errstate(over="ignore"):
            rounded = values.astype(self._dtype)
        if not all_finite(np.ascontiguousarray(rounded)):
            raise FilterError(
                f"tensor {self._name!r}: its factors overflow in {self._dtype}; write them with --out-dtype fp32"
            )
        return rounded


def _slices(values: FloatArray, found: SpectralFilter) -> Iterator[tuple[int, FloatArray]]:
    """A block cut along its length, so that the coefficients of a piece are few."""
    length = values.shape[1] if found.wide else values.shape[0]
    step = max(1, _SLICE_ELEMENTS // found.rank)
    for first in range(0, length, step):
        yield first, values[:, first : first + step] if found.wide else values[first : first + step]


def _energy(values: FloatArray) -> float:
    """‖values‖², a chunk at a time."""
    return sum(norm_squared(values[first:last]) for first, last in row_chunks((values.shape[0], values.shape[1])))


def _pieces(path: Path, start: int = 0, count: int | None = None, size: int = 1 << 22) -> Iterator[bytes]:
    """The bytes of a part from `start` on; nothing where there is no such file."""
    try:
        opened = path.open("rb")
    except FileNotFoundError:
        return
    with opened:
        opened.seek(start)
        left = path.stat().st_size if count is None else count
        while left and (piece := opened.read(min(size, left))):
            left -= len(piece)
            yield piece


def _arrange(
    records: Sequence[TensorRecord], plan: AdapterPlan
) -> tuple[dict[str, tuple[_Placed, ...]], dict[str, Any]]:
    """Which part is stored under which key, module by module, and the config that says so to peft."""
    modules: dict[str, list[TensorRecord]] = {}
    for record in records:
        modules.setdefault(module_of(record.name), []).append(record)
    chosen: dict[str, tuple[_Placed, ...]] = {record.name: () for record in records}
    ranks: dict[str, int] = {}
    whole: list[str] = []
    biases: set[str] = set()
    for module, members in modules.items():
        changed = [record for record in members if record.outcome not in {"zero", "reverted"}]
        weight = next((record for record in members if plan.kinds.get(record.name, "other") != "other"), None)
        places = () if weight is None else plan.factor_places(weight.name)
        factored = weight is not None and len(weight.adapter or ()) > 1
        if factored and weight is not None:
            chosen[weight.name] = _as_stored(weight)
            for place in places:
                if place.key.endswith((".lora_A.weight", ".lora_embedding_A")):
                    ranks[place.key.removeprefix(_PREFIX).rpartition(".lora_")[0]] = _rank(weight)
        if factored or (weight is not None and weight not in changed):
            for record in changed:
                if record is weight:
                    continue
                _refuse_parameter(record, {"bias"})
                inner = "base_layer.bias" if factored else "bias"
                chosen[record.name] = _as_stored(record, f"{_PREFIX}{module}.{inner}")
                biases.add("lora_only" if factored else "all")
        elif changed:
            whole.append(module)
            for record in members:
                _refuse_parameter(record, {"weight", "bias"})
                chosen[record.name] = _as_stored(record)
            if weight is not None and plan.tied is not None and plan.tied[0] == weight.name:
                whole.append(plan.tied[1])
                chosen[weight.name] += _as_stored(weight, f"{_PREFIX}{plan.tied[1]}.weight")
    return chosen, _config(plan, ranks, whole, biases)


def _as_stored(record: TensorRecord, key: str | None = None) -> tuple[_Placed, ...]:
    """The tensors of a part in their order, the first under another key where one is given."""
    placed, start = [], 0
    for part in record.adapter or ():
        placed.append(_Placed(key or part.key, part.shape, part.dtype, part.xxh3, start))
        start += math.prod(part.shape) * itemsize(part.dtype)
    return tuple(placed)


def _rank(record: TensorRecord) -> int:
    return min(min(part.shape) for part in record.adapter or ())


def _refuse_parameter(record: TensorRecord, able: set[str]) -> None:
    if leaf_of(record.name) not in able or record.adapter == ():
        raise OutputError(
            f"tensor {record.name!r} has changed and belongs to no module that an adapter can save; write --as checkpoint"
        )


def _config(plan: AdapterPlan, ranks: Mapping[str, int], whole: Sequence[str], biases: set[str]) -> dict[str, Any]:
    """adapter_config.json. α = r in every module, so that peft's scaling α/r is 1."""
    largest = max(ranks.values(), default=1)
    # peft reads keys as regular expressions that may begin anywhere: anchored and escaped they name one module.
    pattern = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != largest}
    kinds = {plan.kinds.get(f"{module}.weight") for module in ranks}
    return {
        "peft_type": "LORA",
        "task_type": plan.task_type,
        "base_model_name_or_path": plan.base_name,
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": list(ranks) or _DUMMY_TARGET,
        "modules_to_save": list(whole) or None,
        "bias": "all" if "all" in biases else "lora_only" if biases else "none",
        "fan_in_fan_out": "conv1d" in kinds,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def encode_config(config: Mapping[str, Any]) -> bytes:
    """The text of adapter_config.json."""
    return (json.dumps(config, indent=2) + "\n").encode()
