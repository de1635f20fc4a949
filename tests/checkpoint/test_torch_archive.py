"""PyTorch archives: every byte comes from where the directory says, and odd members end in one line."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltamend.checkpoint.inert_pickle import read_inert
from deltamend.checkpoint.torch_file import read_torch_header
from deltamend.errors import CheckpointError

Members = list[tuple[str, bytes]]


def members_of(state: object) -> Members:
    """What torch.save writes, member by member."""
    written = io.BytesIO()
    torch.save(state, written)
    with zipfile.ZipFile(written) as archive:
        return [(member.filename, archive.read(member)) for member in archive.infolist()]


def archive_of(members: Members, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of these members, in their order."""
    written = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(written, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, content in members:
            archive.writestr(name, content)
    return written.getvalue()


def written_members(state: dict[str, torch.Tensor]) -> bytes:
    """A state dict as a .bin file."""
    return archive_of(members_of(state))


def read(path: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a .bin file, by its name."""
    content = path.read_bytes()
    return {entry.name: content[entry.start : entry.stop] for entry in read_torch_header(path).entries}


def states() -> dict[str, torch.Tensor]:
    """Tensors of several kinds: views, tied ones, of attributes of their own, empty ones and parameters."""
    flat = torch.arange(60, dtype=torch.float32)
    named = torch.arange(6, dtype=torch.bfloat16)
    named.sequence_parallel = True  # type: ignore[attr-defined]
    return {
        "whole": flat,
        "view": flat[8:20].view(3, 4),
        "tied": flat[:30],
        "attributes": named,
        "parameter": torch.nn.Parameter(torch.arange(5, dtype=torch.float64)),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7, dtype=torch.int16),
        "fp8": torch.arange(4).to(torch.float8_e4m3fn),
        "unsigned": torch.arange(4).to(torch.uint16),
    }


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_every_tensor_is_read_where_it_lies_in_whatever_order_the_members_come(
    tmp_path: Path, data: st.DataObject
) -> None:
    state = states()
    members = data.draw(st.permutations(members_of(state)))
    if data.draw(st.booleans(), label="other members between them"):
        members.insert(data.draw(st.integers(0, len(members))), ("archive/.data/notes", b"x" * 100))
    if data.draw(st.booleans(), label="without bookkeeping"):
        members = [one for one in members if "/data" in one[0]]
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(archive_of(members))
    expected = {
        name: tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        for name, tensor in state.items()
    }
    assert read(path) == expected


def _with(name: str, content: bytes) -> Callable[[Members], bytes]:
    return lambda members: archive_of([(one, content if one.endswith(name) else data) for one, data in members])


def _and(name: str, content: bytes) -> Callable[[Members], bytes]:
    return lambda members: archive_of([*members, (name, content)])


def _local_name(members: Members) -> bytes:
    """The local header of one storage says that it is another."""
    return archive_of(members).replace(b"archive/data/0", b"archive/data/1", 1)


def _short_storage(members: Members) -> bytes:
    return archive_of([(name, data[:-4] if name.endswith("/data/0") else data) for name, data in members])


def _overlapping(members: Members) -> bytes:
    """The directory places one storage inside another."""
    content = bytearray(archive_of(members))
    entries = [at for at in range(len(content)) if content.startswith(b"PK\x01\x02", at)]
    first, second = (content.index(b"archive/data/%d" % number, entries[0]) - 46 for number in (0, 1))
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    return bytes(content)


ODD: dict[str, Callable[[Members], bytes]] = {
    "big-endian": _with("/byteorder", b"big"),
    "byte order of many bytes": _with("/byteorder", b"little" * 10),
    "a second byte order": _and("archive/byteorder", b"big"),
    "a second pickle": _and("other/data.pkl", b""),
    "a storage twice": _and("archive/data/0", b"x" * 1000),
    "another name in the local header": _local_name,
    "a storage that is too short": _short_storage,
    "storages in one place": _overlapping,
    "compressed": lambda members: archive_of(members, zipfile.ZIP_DEFLATED),
    "no pickle": lambda members: archive_of(members[1:]),
    "no storages": lambda members: archive_of(members[:1]),
    "nothing": lambda members: archive_of(members[:0]),
}


@pytest.mark.parametrize("kind", sorted(ODD))
def test_odd_members_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(ODD[kind](members_of({"a": torch.ones(40), "b": torch.zeros(40)})))
    with pytest.raises(CheckpointError) as caught:
        read_torch_header(path)
    assert str(caught.value).isprintable()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("number", ["0", "-1", "999999999999", "x", ""])
def test_an_alignment_that_torch_fails_on_changes_nothing(number: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(_with("/.storage_alignment", number.encode())(members_of({"a": torch.ones(40)})))
    assert read(path) == {"a": torch.ones(40).numpy().tobytes()}


UNREADABLE = {
    "sparse": torch.eye(3).to_sparse(),
    "complex128": torch.ones(3, dtype=torch.complex128),
    "conjugated": torch.ones(3, dtype=torch.complex64).conj(),
    "transposed": torch.ones(2, 3).T,
    "without values": torch.ones(3, device="meta"),
}


@pytest.mark.parametrize("kind", sorted(UNREADABLE))
def test_a_tensor_that_cannot_be_read_is_not_called_dangerous(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": UNREADABLE[kind]}, path)
    with pytest.raises(CheckpointError) as caught:
        read_torch_header(path)
    assert "code" not in str(caught.value)


def _tuple(depth: int, then: bytes) -> bytes:
    return b"\x80\x02}(" + b")" + b"\x85" * depth + then + b"."


HEAVY = {
    "a number of an object of 2**31": b"\x80\x02]r\xff\xff\xff\x7f.",
    "the same as text": b"\x80\x02]p2147483647\n.",
    "a key of nested tuples": _tuple(1_000_000, b"K\x01u"),
    "an entry of a set of nested tuples": b"\x80\x04\x8f(" + b")" + b"\x85" * 1_000_000 + b"\x90.",
    "nested lists": b"\x80\x02" + b"](" * 5000 + b"e" * 5000 + b".",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(HEAVY))
def test_a_pickle_of_few_bytes_takes_neither_the_process_nor_its_memory(kind: str) -> None:
    before = _resident()
    with pytest.raises(Exception) if "number" not in kind and "text" not in kind else _nothing():  # noqa: PT011
        read_inert(HEAVY[kind], {})
    assert _resident() - before < 400 << 20


class _nothing:  # noqa: N801 - used as a function
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_tensor_cannot_be_changed_after_it_was_checked(tmp_path: Path) -> None:
    members = dict(members_of({"a": torch.ones(4)}))
    content = members["archive/data.pkl"]
    # BUILD gives the tensor, which lies on top of the stack when its key and itself are put into the dictionary, a state.
    place = content.rindex(b"s") if b"s" in content[-3:] else content.rindex(b"u")
    state = pickle.dumps({"start": 0, "stop": 8}, protocol=2)[2:-1]
    members["archive/data.pkl"] = content[:place] + state + b"b" + content[place:]
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(archive_of(list(members.items())))
    with pytest.raises(CheckpointError, match="given a state"):
        read_torch_header(path)
