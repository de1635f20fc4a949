"""One set of rules for names and shapes: what a reader takes can be written, and read by the reference implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from deltamend.checkpoint.checkpoint_folder import open_folder
from deltamend.checkpoint.safetensors_header import encode_header, read_header
from deltamend.checkpoint.tensor_rules import fault_of_tensor
from deltamend.checkpoint.torch_file import read_torch_header
from deltamend.errors import CheckpointError
from tests.checkpoint.test_torch_archive import written_members

NAMES = st.one_of(
    st.sampled_from(["__metadata__", "", "a", "a.b", "\x1b[31m", "\ud800", "é\u202e", " "]), st.text(max_size=6)
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**62, 2**63 - 1]), max_size=20).map(tuple)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(name=NAMES, shape=SHAPES)
def test_what_the_rules_allow_is_read_by_the_reference_implementation(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    if fault_of_tensor(name, shape, 4):
        with pytest.raises(CheckpointError, match="cannot be written"):
            encode_header([(name, "F32", shape)], {})
        return
    header, offsets = encode_header([(name, "F32", shape)], {"format": "pt"})
    if offsets[name][1] > 1000:
        return  # nothing to write down
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + bytes(offsets[name][1] - len(header)))
    with safe_open(path, "np") as opened:
        assert list(opened.keys()) == [name]
    assert read_header(path).described == [(name, "F32", shape)]


BAD = {
    "metadata": ("__metadata__", torch.ones(4, 4)),
    "dimensions": ("x", torch.ones([1] * 17)),
    "empty": ("", torch.ones(2)),
    "control": ("a\x1b[31m", torch.ones(2)),
    "surrogate": ("a\ud800", torch.ones(2)),
}


@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_pytorch_file_follows_the_rules(kind: str, tmp_path: Path) -> None:
    name, tensor = BAD[kind]
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(written_members({"fine": torch.ones(2), name: tensor}))
    with pytest.raises(CheckpointError) as caught:
        read_torch_header(path)
    assert str(caught.value).isprintable()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", sorted(BAD))
def test_what_is_shown_follows_the_rules(kind: str, tmp_path: Path) -> None:
    """Renaming, adapters, and what distributed runs wrote come through `Checkpoint.present`."""
    name, tensor = BAD[kind]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(written_members({"fine": torch.ones(2)}))
    with open_folder(tmp_path) as checkpoint:
        shown = checkpoint.tensors["fine"]
        with pytest.raises(CheckpointError, match="cannot be read"):
            checkpoint.present({name: shown.__class__(name, "F32", tuple(tensor.shape), shown.file, 0, 8)})
