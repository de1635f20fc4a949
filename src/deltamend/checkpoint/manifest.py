"""The format of `deltamend.json`, which records what was done to every tensor for programs and people to read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from deltamend.records import Record

_NO_HASH = "0" * 64

Output = Literal["checkpoint", "adapter"]
"""What a repair writes."""

MatrixOutcome = Literal["filtered", "identity", "zero", "reverted", "no-noise-floor", "kept"]


class SpectrumRecord(Record):
    """What a spectral filter found in one matrix."""

    rank: int = Field(description="Singular values kept.", ge=0)
    full_rank: int = Field(description="The shorter side.", ge=1)
    threshold: float | None = Field(
        description="Singular values strictly above it are kept; none where no rule was applied."
    )
    noise: float | None = Field(description="Estimated standard deviation of one entry of the noise.")
    median: float | None = Field(description="Median singular value of the delta, where it was computed.")
    largest: float | None = Field(description="Largest singular value of the delta, where it was computed.")
    route: str = Field(description="Algorithm and precision that gave the answer.")
    tie: bool = Field(
        description="A singular value lies within rounding of the threshold: libraries may differ by one rank."
    )


class MatrixRepair(Record):
    """What was done to one matrix, and what the written weights hold. Norms are Frobenius norms over the repaired rows."""

    outcome: MatrixOutcome = Field(description="What was done with the update of this matrix, in a word.")
    reason: str = Field(description="Why, in words; empty where the outcome says it all.")
    spectrum: SpectrumRecord | None = Field(
        default=None, description="What a spectral filter found; none for other methods and where nothing was filtered."
    )
    delta_norm: float | None = Field(default=None, description="‖Δ‖, Δ = W_ft − W_base.")
    kept_norm: float | None = Field(
        default=None, description="‖Δ*‖, what the method kept, before the cast to the stored dtype."
    )
    kept_energy: float | None = Field(default=None, description="‖Δ*‖² / ‖Δ‖²; none where Δ = 0.")
    removed_norm: float | None = Field(
        default=None,
        description="‖Δ − Δ*‖, what the method takes away; none where it was not measured, as in an adapter's factors.",
    )
    realised_norm: float | None = Field(default=None, description="‖cast(W*) − W_base‖, what the written weights hold.")
    realised_error: float | None = Field(
        default=None, description="‖cast(W*) − W_base − Δ*‖ / ‖Δ*‖; none where Δ* = 0."
    )
    unmoved: float | None = Field(
        default=None, description="Share of entries where the written weight equals the base weight."
    )


class PartRecord(MatrixRepair):
    """One of the matrices of a tensor that holds several."""

    label: str = Field(description="Such as [3] for an expert, or [q] for the query of a fused weight.")


class AdapterRecord(Record):
    """One tensor of an adapter's file."""

    key: str = Field(description="Its name in the file.")
    shape: tuple[int, ...] = Field(description="Its shape in the file.")
    dtype: str = Field(description="By its safetensors name.")
    xxh3: str = Field(description="XXH3-128 of its bytes.")


class TensorRecord(MatrixRepair):
    """One tensor of the output."""

    parts: tuple[PartRecord, ...] = Field(
        default=(), description="Its matrices, where it holds several; none otherwise."
    )

    name: str = Field(description="The tensor's name in the output, which is its name in FINETUNED.")
    file: str = Field(description="The file of the output that holds it.")
    shape: tuple[int, ...] = Field(description="Its shape, as in FINETUNED.")
    dtype: str = Field(description="Stored dtype of the output, by its safetensors name.")
    finetuned_dtype: str = Field(description="Stored dtype in FINETUNED, by its safetensors name.")
    base_dtype: str | None = Field(
        description="Stored dtype in BASE, by its safetensors name; none where BASE has no such tensor."
    )
    action: Literal["filter", "keep"] = Field(
        description="Whether the tensor was given to a method, or kept as fine-tuned without asking one."
    )
    method: str | None = Field(description="Method and its parameters that are not defaults; none where kept.")
    rows: int = Field(
        description="Rows (entries of the first axis) that were repaired; the rest is kept as fine-tuned.", ge=0
    )
    xxh3: str = Field(description="XXH3-128 of the tensor's bytes in the output.")
    adapter: tuple[AdapterRecord, ...] | None = Field(
        default=None, description="What an adapter holds of it; empty where it is as in BASE. None in a checkpoint."
    )
    seconds: float = Field(description="Wall-clock seconds spent on this tensor; differs from run to run.")


class FileRecord(Record):
    """A file by its path inside the folder, its bytes and its hash."""

    name: str = Field(description="Path inside the folder.")
    size: int = Field(description="Length in bytes.")
    sha256: str = Field(description="SHA-256 of its bytes, in hexadecimal digits.")


class InputRecord(Record):
    """One of the two inputs: the name of its folder (never its path) and its weight files."""

    name: str = Field(description="Last part of the folder's path, or the hub id.")
    files: tuple[FileRecord, ...] = Field(description="Its weight files.")


class LeftOutRecord(Record):
    """A file of FINETUNED that is not in the output, and why."""

    name: str = Field(description="Path inside FINETUNED.")
    reason: str = Field(description="Why it was left out.")


Parent = Literal["yes", "doubtful", "in part", "no", "unknown"]
"""Whether FINETUNED was made from BASE."""


class ParentRecord(Record):
    """What a sample of the weights says about whether FINETUNED was made from BASE; see `inputs.parentage`."""

    verdict: Parent = Field(description="Whether FINETUNED was made from BASE.")
    sentence: str = Field(description="The same in words, with the numbers.")
    matrices: int = Field(description="Matrices of which a sample was read.")
    unrelated: tuple[str, ...] = Field(description="Those that do not come from BASE's.")
    share: float | None = Field(
        description="Median of β in W_ft = β·W_base + a rest unlike W_base; 1 for a descendant."
    )
    correlation: float | None = Field(description="Median correlation of the entries of W_ft and W_base.")
    distance: float | None = Field(description="Median of ‖Δ‖/‖W_base‖.")
    farthest: float | None = Field(description="The largest ‖Δ‖/‖W_base‖.")


class CoverageRecord(Record):
    """How much of FINETUNED a repair reaches. Rows of tokens that only FINETUNED has do not count as repaired."""

    matrices: int = Field(description="Tensors of FINETUNED that are matrices, or hold some.")
    repaired: int = Field(description="How many of them were given to a method.")
    entries: int = Field(description="Entries of all these matrices.")
    repaired_entries: int = Field(description="How many of these entries were given to a method.")

    @property
    def share(self) -> float:
        """The share of the entries, 0 to 1; 1 where there is no matrix."""
        return self.repaired_entries / self.entries if self.entries else 1.0


class RunRecord(Record):
    """What may differ between two runs that give the same weights."""

    seconds: float = Field(description="Wall-clock seconds of the whole run.")
    workers: int = Field(description="Tensors that were worked on at a time.")
    versions: dict[str, str] = Field(description="Versions of Python and of the libraries that the figures depend on.")


class Manifest(Record):
    """The whole of `deltamend.json`. All but `run` and each tensor's `seconds` is the same for the same inputs."""

    manifest_version: Literal[1] = Field(default=1, description="Version of this format.")
    deltamend: str = Field(description="Version of deltamend that wrote the output.")
    plan_sha256: str = Field(description="Identifies inputs and options; `--resume` compares it.")
    method: str = Field(description="Method of every matrix that no rule gives another one.")
    parameters: dict[str, object] = Field(description="All parameters of the method, defaults included.")
    options: dict[str, str | None] = Field(description="Options of the repair by name; none where one was not given.")
    base: InputRecord = Field(description="The model that fine-tuning started from.")
    finetuned: InputRecord = Field(description="The fine-tuned model.")
    notes: tuple[str, ...] = Field(
        default=(), description="How the inputs were read, where it is not simply as stored."
    )
    only_in_base: tuple[str, ...] = Field(description="Tensors of BASE that FINETUNED lacks, and so does the output.")
    left_out: tuple[LeftOutRecord, ...] = Field(description="Files of FINETUNED that were not copied to the output.")
    parent: ParentRecord | None = Field(
        default=None,
        description="Whether FINETUNED was made from BASE; none in files that were written before it was recorded.",
    )
    coverage: CoverageRecord | None = Field(
        default=None,
        description="How much of FINETUNED was repaired; none in files that were written before it was recorded.",
    )
    tensors: tuple[TensorRecord, ...] = Field(description="Every tensor of the output.")
    files: tuple[FileRecord, ...] = Field(description="Every file of the output but this one.")
    run: RunRecord = Field(description="Time, workers and versions; differs from run to run.")
    self_sha256: str = Field(default=_NO_HASH, description="Of this file, with these 64 characters as zeros.")

    @property
    def is_adapter(self) -> bool:
        """Whether the output is an adapter and not a checkpoint."""
        return self.options.get("output") == "adapter"

    @property
    def kept_energy(self) -> float:
        """Σ‖Δ*‖² / Σ‖Δ‖² over all matrices; 1 where every delta is zero."""
        return kept_energy_of(self.tensors)

    @property
    def realised_error(self) -> float:
        """‖cast(W*) − W_base − Δ*‖ / ‖Δ*‖ over all matrices; 0 where Δ* is zero."""
        return realised_error_of(self.tensors)

    @property
    def undone_by_rounding(self) -> float | None:
        """‖cast(W*) − W_base − Δ*‖ / ‖Δ − Δ*‖ over all matrices; see `undone_by_rounding_of`."""
        return undone_by_rounding_of(self.tensors)


MORE_THAN_ALL = 1.0 + 1e-4
"""From this kept energy on a method made the update larger; up to it, the difference from 1 is the rounding of sums."""


def kept_energy_of(matrices: Sequence[MatrixRepair]) -> float:
    """Σ‖Δ*‖² / Σ‖Δ‖² over the matrices; 1 where every delta is zero."""
    total = sum(matrix.delta_norm**2 for matrix in matrices if matrix.delta_norm is not None)
    kept = sum(matrix.kept_norm**2 for matrix in matrices if matrix.kept_norm is not None)
    return kept / total if total else 1.0


def realised_error_of(matrices: Sequence[MatrixRepair]) -> float:
    """‖cast(W*) − W_base − Δ*‖ / ‖Δ*‖ over the matrices; 0 where Δ* is zero."""
    kept = sum(matrix.kept_norm**2 for matrix in matrices if matrix.kept_norm is not None)
    return math.sqrt(_lost_in_cast(matrices) / kept) if kept else 0.0


def undone_by_rounding_of(matrices: Sequence[MatrixRepair]) -> float | None:
    """‖cast(W*) − W_base − Δ*‖ / ‖Δ − Δ*‖ over the matrices: how large rounding is beside what the repair took away.

    From about 1 on, little of the repair is left. None where nothing was taken away, or that was not measured.
    """
    measured = [matrix.removed_norm for matrix in matrices if matrix.delta_norm is not None]
    if any(norm is None for norm in measured):
        return None
    removed = sum(norm**2 for norm in measured if norm is not None)
    return math.sqrt(_lost_in_cast(matrices) / removed) if removed else None


def _lost_in_cast(matrices: Sequence[MatrixRepair]) -> float:
    """Σ‖cast(W*) − W_base − Δ*‖² over the matrices."""
    return sum(
        (matrix.realised_error * matrix.kept_norm) ** 2
        for matrix in matrices
        if matrix.realised_error is not None and matrix.kept_norm is not None
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """The text of `deltamend.json`, with its own hash filled in."""
    blank = (manifest.model_copy(update={"self_sha256": _NO_HASH}).model_dump_json(indent=1) + "\n").encode()
    return _with_hash(blank, hashlib.sha256(blank).hexdigest())


def decode_manifest(text: bytes) -> Manifest:
    """Read the text of `deltamend.json`.

    Raises:
        ValueError: it is no manifest, or not the text that was written (its own hash does not fit).
    """
    manifest = Manifest.model_validate_json(text)
    blank = text.replace(manifest.self_sha256.encode(), _NO_HASH.encode())
    if hashlib.sha256(blank).hexdigest() != manifest.self_sha256:
        raise ValueError("its text was changed")
    return manifest


def _with_hash(blank: bytes, digest: str) -> bytes:
    head, field, tail = blank.rpartition(b'"self_sha256":')
    return head + field + tail.replace(_NO_HASH.encode(), digest.encode(), 1)
