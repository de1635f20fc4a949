from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from deltamend.checkpoint.dtypes import NUMPY_DTYPES, itemsize
from deltamend.checkpoint.safetensors_header import encode_header, read_header
from deltamend.errors import CheckpointError

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(str.isprintable),
    st.tuples(st.sampled_from(sorted(NUMPY_DTYPES)), SHAPES),
    max_size=6,
)
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    described = [(name, dtype, shape) for name, (dtype, shape) in tensors.items() if name != "__metadata__"]
    header, offsets = encode_header(described, metadata)
    end = max((stop for _, stop in offsets.values()), default=len(header))
    path.write_bytes(header + bytes(end - len(header)))
    return header


@pytest.mark.slow
@in_one_folder
@given(tensors=TENSORS, metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
def test_what_is_written_is_read(
    tmp_path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    path = tmp_path / "x.safetensors"
    header = write(path, tensors, metadata)
    found = read_header(path)
    assert {entry.name: (entry.dtype, entry.shape) for entry in found.entries} == tensors
    assert found.metadata == metadata
    assert found.text == header
    for entry in found.entries:
        assert entry.stop - entry.start == math.prod(entry.shape) * itemsize(entry.dtype)


def test_the_bytes_are_those_of_the_reference_implementation(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3), "a": torch.ones(2, 2, dtype=torch.bfloat16), 'é"': torch.ones(1, dtype=torch.int8)}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    found = read_header(path)
    header, _ = encode_header(found.described, found.metadata)
    assert path.read_bytes().startswith(header)
    assert header == found.text


def assert_read_or_refused(path: Path) -> None:
    """A file gives a header that fits it, or one line that names the file."""
    refusal = None
    try:
        found = read_header(path)
    except CheckpointError as error:
        refusal = str(error)
    if refusal is None:
        assert all(len(found.text) <= entry.start <= entry.stop <= path.stat().st_size for entry in found.entries)
    else:
        assert str(path) in refusal
        assert len(refusal.splitlines()) == 1


@pytest.mark.slow
@settings(in_one_folder, max_examples=1500)
@given(
    flips=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=4), cut=st.integers(0, 400)
)
def test_damaged_bytes_are_read_or_refused(tmp_path: Path, flips: list[tuple[int, int]], cut: int) -> None:
    path = tmp_path / "x.safetensors"
    write(path, {"one": ("F32", (3, 2)), "two": ("BF16", (5,)), "three": ("I64", ())}, {"format": "pt"})
    content = bytearray(path.read_bytes())
    for position, value in flips:
        content[position % len(content)] = value
    path.write_bytes(content[: len(content) - (cut if cut < 20 else 0)])
    assert_read_or_refused(path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(in_one_folder, max_examples=1000)
@given(
    entry=st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "I4", 7]) | JSON_VALUES,
            "shape": st.lists(st.integers(-2, 2**70), max_size=3) | JSON_VALUES,
            "data_offsets": st.lists(st.integers(-4, 2**70), min_size=1, max_size=3) | JSON_VALUES,
        }
    )
    | JSON_VALUES,
    metadata=JSON_VALUES,
)
def test_headers_that_make_no_sense_are_refused(tmp_path: Path, entry: object, metadata: object) -> None:
    path = tmp_path / "x.safetensors"
    header = json.dumps({"__metadata__": metadata, "x": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    assert_read_or_refused(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[" * 200_000, "corrupt header"),
        (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            "corrupt header",
        ),
        (b'{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,4]}}', "dtype 'F4', which deltamend cannot read"),
        (b"\xff\xfe", "corrupt header"),
        (b'{"\\u001b[31m":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "holds control characters"),
    ],
    ids=["nested", "twice", "four-bit", "not-utf-8", "escape"],
)
def test_hostile_headers(tmp_path: Path, header: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little"))
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        read_header(path)
