"""Folders of torch.distributed.checkpoint, against what torch itself puts together from them."""

from __future__ import annotations

import io
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save

import deltamend
from deltamend.errors import CheckpointError
from deltamend.inputs.open_models import open_checkpoint
from tests.conftest import llama, save_pair
from tests.reference import load

Tensors = dict[str, torch.Tensor]


def write_sharded(folder: Path, tensors: Tensors, cuts: dict[str, tuple[int, ...]], *, files: int = 2) -> None:
    """Write a DCP folder as several processes would: each tensor in as many chunks, by dimension, as `cuts` says."""
    folder.mkdir(parents=True)
    contents = [io.BytesIO() for _ in range(files)]
    torch.save({"step": 3}, contents[0])
    described: dict[str, Any] = {"train_state": BytesStorageMetadata()}
    place = _StorageInfo("__0_0.distcp", 0, contents[0].tell())
    places: dict[MetadataIndex, _StorageInfo] = {MetadataIndex("train_state"): place}
    turn = itertools.cycle(range(files))
    for name, tensor in tensors.items():
        counts = cuts.get(name, cuts.get("", (2,)))
        counts = (*counts, *[1] * tensor.ndim)[: tensor.ndim]
        edges = [
            [(start, min(start + -(-size // count), size)) for start in range(0, size, -(-size // count))]
            for size, count in zip(tensor.shape, counts, strict=True)
        ]
        chunks = []
        for spans in itertools.product(*edges):
            chunk = tensor[tuple(slice(*span) for span in spans)].clone()
            offsets, sizes = torch.Size([start for start, _ in spans]), chunk.shape
            number = next(turn)
            start = contents[number].tell()
            torch.save(chunk, contents[number])
            places[MetadataIndex(name, offsets)] = _StorageInfo(
                f"__{number}_0.distcp", start, contents[number].tell() - start
            )
            chunks.append(ChunkStorageMetadata(offsets=offsets, sizes=sizes))
        described[name] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.shape, chunks)
    for number, content in enumerate(contents):
        (folder / f"__{number}_0.distcp").write_bytes(content.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(described, None, places)))


def as_dcp(folder: Path, target: Path, prefix: str = "", cuts: dict[str, tuple[int, ...]] | None = None) -> None:
    """Write the weights of a folder as DCP, and its config beside them."""
    tensors = {prefix + name: tensor for name, tensor in load(folder).items()}
    write_sharded(target, tensors, cuts or {})
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_torch_saves_is_read_without_the_optimiser(tmp_path: Path) -> None:
    model = llama(torch.bfloat16)
    state = {
        "model": model.state_dict(),
        "optimizer": {"state": {"exp_avg": torch.ones(3)}},
        "lr_scheduler": {"step": 3},
    }
    save(state, checkpoint_id=tmp_path, no_dist=True)
    model.config.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            values = checkpoint.values(checkpoint.tensors[name], 0, tensor.numel())
            assert values.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("cuts", [(2,), (3,), (1, 2), (2, 3)])
def test_chunks_are_put_together_as_torch_does(cuts: tuple[int, ...], tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.mlp.up_proj.weight": torch.randn(25, 14),
        "model.layers.0.mlp.experts.down_proj": torch.randn(4, 6, 8).bfloat16(),
        "model.norm.weight": torch.randn(9),
        "lm_head.weight": torch.randn(7, 3).half(),
    }
    write_sharded(tmp_path / "dcp", tensors, {"": cuts}, files=3)
    llama().config.save_pretrained(tmp_path / "dcp")
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "whole.pt")
    theirs = torch.load(tmp_path / "whole.pt", weights_only=True)
    with open_checkpoint(tmp_path / "dcp") as checkpoint:
        assert checkpoint.tensors.keys() == tensors.keys()
        for name, stored in checkpoint.tensors.items():
            expected = theirs[name].reshape(-1)
            for start, stop in ((0, expected.numel()), (1, expected.numel()), (3, expected.numel() - 2)):
                values = checkpoint.values(stored, start, stop)
                assert values.tobytes() == expected[start:stop].view(torch.uint8).numpy().tobytes(), (name, start)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "model.", "app.model."])
@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_a_repair_is_the_same_as_of_safetensors(prefix: str, side: str, tmp_path: Path) -> None:
    pair = save_pair(llama(), tmp_path / "plain")
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "expected")
    folders = {"base": pair.base, "finetuned": pair.finetuned}
    as_dcp(folders[side], tmp_path / "dcp", prefix)
    folders[side] = tmp_path / "dcp"
    report = deltamend.repair(folders["base"], folders["finetuned"], tmp_path / "out")
    ours, theirs = load(tmp_path / "out"), load(tmp_path / "expected")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert any("put together from the 2 files of a distributed checkpoint" in note for note in report.manifest.notes)
    assert deltamend.verify(tmp_path / "out") == []
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in files
    assert not any(name.endswith(".distcp") for name in files)


def test_the_folder_above_is_taken_as_trainer_writes_it(tmp_path: Path) -> None:
    pair = save_pair(llama(), tmp_path)
    as_dcp(pair.finetuned, tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0")
    (tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0" / "config.json").rename(
        tmp_path / "checkpoint-5" / "config.json"
    )
    write_sharded(tmp_path / "checkpoint-5" / "optimizer_0", {"state.a": torch.ones(4)}, {})
    for folder in (tmp_path / "checkpoint-5", tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0"):
        with open_checkpoint(folder) as checkpoint:
            assert checkpoint.folder == tmp_path / "checkpoint-5"
            assert checkpoint.tensors.keys() == load(pair.finetuned).keys()


def test_a_folder_without_a_config_is_told_what_to_copy(tmp_path: Path) -> None:
    write_sharded(tmp_path / "run" / "dcp", {"lm_head.weight": torch.ones(4, 4)}, {})
    with pytest.raises(
        CheckpointError, match=r"copy config.json and the tokenizer of the model that was trained into .*dcp$"
    ):
        open_checkpoint(tmp_path / "run" / "dcp").close()


class Trap:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not be printed",))


def rewritten(folder: Path, change: Any) -> None:
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())  # noqa: S301 - the test wrote it
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def first_chunk(metadata: Metadata) -> tuple[MetadataIndex, _StorageInfo]:
    return next((index, place) for index, place in metadata.storage_data.items() if index.offset is not None)


def with_trap(metadata: Metadata) -> None:
    metadata.planner_data = Trap()


def outside(metadata: Metadata) -> None:
    first_chunk(metadata)[1].relative_path = "../secret"


def compressed(metadata: Metadata) -> None:
    first_chunk(metadata)[1].transform_descriptors = ["zstd"]


def hole(metadata: Metadata) -> None:
    index = first_chunk(metadata)[0]
    metadata.state_dict_metadata[index.fqn].chunks.pop()  # type: ignore[union-attr]


def overlap(metadata: Metadata) -> None:
    index = first_chunk(metadata)[0]
    chunks = metadata.state_dict_metadata[index.fqn].chunks  # type: ignore[union-attr]
    chunks[1].offsets = chunks[0].offsets


def behind(metadata: Metadata) -> None:
    first_chunk(metadata)[1].offset += 10**9


def other_dtype(metadata: Metadata) -> None:
    index = first_chunk(metadata)[0]
    metadata.state_dict_metadata[index.fqn].properties.dtype = torch.float64  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_trap, "builtins.print"),
        (outside, "is no file of the folder"),
        (compressed, "so compressed or encrypted"),
        (hole, "chunks that do not make up the tensor"),
        (overlap, "overlap"),
        (behind, "truncated inside tensor"),
        (other_dtype, "where the metadata says"),
    ],
)
def test_metadata_that_cannot_be_is_refused_in_one_line(
    change: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama().config.save_pretrained(tmp_path / "dcp-config")
    write_sharded(tmp_path / "dcp", {"lm_head.weight": torch.ones(8, 4), "model.norm.weight": torch.ones(4)}, {})
    (tmp_path / "dcp" / "config.json").write_bytes((tmp_path / "dcp-config" / "config.json").read_bytes())
    rewritten(tmp_path / "dcp", change)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(tmp_path / "dcp").close()
    assert "\n" not in str(caught.value)
    assert "this must not be printed" not in capsys.readouterr().out


def read_whole(folder: Path) -> str:
    """Read every tensor; what the error says where the folder is refused."""
    try:
        with open_checkpoint(folder) as checkpoint:
            for tensor in checkpoint.tensors.values():
                checkpoint.values(tensor, 0, tensor.elements)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_damaged_bytes_end_in_an_error_of_one_line_or_in_weights(seed: int, tmp_path: Path) -> None:
    write_sharded(tmp_path / "dcp", {"lm_head.weight": torch.ones(8, 4), "model.norm.weight": torch.ones(4)}, {})
    llama().config.save_pretrained(tmp_path / "dcp")
    generator = torch.Generator().manual_seed(seed)
    path = tmp_path / "dcp" / (".metadata" if seed % 2 else "__0_0.distcp")
    content = bytearray(path.read_bytes())
    for place in torch.randint(0, len(content), (3,), generator=generator).tolist():
        content[place] = int(torch.randint(0, 256, (1,), generator=generator))
    path.write_bytes(bytes(content))
    said = read_whole(tmp_path / "dcp")
    assert "\n" not in said


def test_folders_of_megatron_are_refused_with_the_name_of_a_converter(tmp_path: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("100")
    with pytest.raises(CheckpointError, match=r"Megatron Bridge, AutoBridge.from_hf_pretrained\(MODEL\).export_ckpt"):
        open_checkpoint(tmp_path).close()


def test_usual_weights_are_read_before_those_of_a_run(tmp_path: Path) -> None:
    pair = save_pair(llama(), tmp_path)
    write_sharded(pair.base / "pytorch_model_fsdp_0", {"lm_head.weight": torch.ones(8, 4)}, {})
    with open_checkpoint(pair.base) as checkpoint:
        assert checkpoint.tensors.keys() == load(pair.base).keys()
