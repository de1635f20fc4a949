"""Folders of DeepSpeed's ZeRO, written as DeepSpeed writes them, and put together as its zero_to_fp32 does.

DeepSpeed itself is no requirement of the tests: the writers follow its `utils/zero_to_fp32.py` (0.19.8) in plain code.
"""

from __future__ import annotations

import math
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deltamend
from deltamend.errors import CheckpointError
from deltamend.inputs.open_models import open_checkpoint
from tests.conftest import llama, save_pair
from tests.reference import load

Tensors = dict[str, torch.Tensor]
Shapes = list["OrderedDict[str, torch.Size]"]


def groups_of(tensors: Tensors) -> list[Tensors]:
    """Two groups of parameters, as an optimiser with and without weight decay has."""
    decayed = {name: tensor for name, tensor in tensors.items() if tensor.ndim > 1}
    return [group for group in (decayed, {name: tensors[name] for name in tensors if name not in decayed}) if group]


def write_stage_2(
    folder: Path, tensors: Tensors, *, ranks: int = 3, stage: int = 2, gap: int | None = None, **beside: Any
) -> None:
    """Flat groups, padded to a multiple of 2·ranks, in equal parts; `gap` entries of padding behind each parameter."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = groups_of(tensors)
    parts: list[list[torch.Tensor]] = [[] for _ in range(ranks)]
    for group in groups:
        padded = [torch.nn.functional.pad(tensor.float().flatten(), (0, gap or 0)) for tensor in group.values()]
        flat = torch.cat(padded)
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % (2 * ranks)))
        for rank, part in enumerate(flat.chunk(ranks)):
            parts[rank].append(part.clone())
    shapes = [OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in groups]
    state = {
        "module": {},
        "param_shapes": shapes,
        "buffer_names": [],
        "shared_params": {},
        "ds_version": "0.16",
        **beside,
    }
    torch.save(state, folder / "mp_rank_00_model_states.pt")
    for rank in range(ranks):
        inner: dict[str, Any] = {
            "zero_stage": stage,
            "partition_count": [ranks, ranks],
            "single_partition_of_fp32_groups": parts[rank],
        }
        if gap is not None:
            inner["param_alignment_paddings"] = [[gap] * len(group) for group in groups]
        torch.save({"optimizer_state_dict": inner}, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def write_stage_3(folder: Path, tensors: Tensors, *, ranks: int = 3, frozen: Tensors | None = None) -> None:
    """Each parameter padded and cut among the ranks; a rank's parts in two flat tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[list[torch.Tensor]] = [[] for _ in range(ranks)]
    for group in groups_of(tensors):
        for tensor in group.values():
            each = math.ceil(tensor.numel() / ranks)
            padded = torch.nn.functional.pad(tensor.float().flatten(), (0, each * ranks - tensor.numel()))
            for rank in range(ranks):
                lines[rank].append(padded[rank * each : (rank + 1) * each])
    shapes = [OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in groups_of(tensors)]
    for rank in range(ranks):
        half = len(lines[rank]) // 2
        flat = [torch.cat(part) for part in (lines[rank][:half], lines[rank][half:]) if part]
        inner = {"zero_stage": 3, "partition_count": ranks, "fp32_flat_groups": flat}
        torch.save({"optimizer_state_dict": inner}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        fragments = {}
        for name, tensor in (frozen or {}).items():
            each = math.ceil(tensor.numel() / ranks)
            flat_one = torch.nn.functional.pad(tensor.flatten(), (0, each * ranks - tensor.numel()))
            fragments[name] = flat_one[rank * each : (rank + 1) * each].clone()
        state = {
            "module": {}, "param_shapes": shapes, "buffer_names": [], "shared_params": {}, "ds_version": "0.16",
            "frozen_param_shapes": {name: tensor.shape for name, tensor in (frozen or {}).items()},
            "frozen_param_fragments": fragments,
        }  # fmt: skip
        torch.save(state, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")


def write_stage_1(folder: Path, tensors: Tensors) -> None:
    """As in stage 2."""
    write_stage_2(folder, tensors, stage=1)


WRITERS: dict[str, Callable[[Path, Tensors], None]] = {
    "stage 1": write_stage_1,
    "stage 2": write_stage_2,
    "stage 3": write_stage_3,
}


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_a_repair_is_the_same_as_of_the_fp32_weights(writer: str, side: str, tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path / "plain")
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "expected")
    folders = {"base": pair.base, "finetuned": pair.finetuned}
    step = tmp_path / "checkpoint-7" / "global_step7"
    WRITERS[writer](step, load(folders[side]))
    (step.parent / "latest").write_text("global_step7\n")
    (step.parent / "config.json").write_bytes((pair.base / "config.json").read_bytes())
    folders[side] = step.parent
    report = deltamend.repair(folders["base"], folders["finetuned"], tmp_path / "out")
    ours, theirs = load(tmp_path / "out"), load(tmp_path / "expected")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert any("from DeepSpeed's files (ZeRO " + writer in note for note in report.manifest.notes)
    assert not list((tmp_path / "out").rglob("*.pt"))


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("writer", WRITERS)
def test_any_number_of_ranks_gives_the_same_weights(writer: str, ranks: int, tmp_path: Path) -> None:
    tensors = {
        "model.a.weight": torch.randn(7, 5),
        "model.norm.weight": torch.randn(3),
        "lm_head.weight": torch.randn(2, 2),
    }
    write = write_stage_3 if writer == "stage 3" else write_stage_2
    write(tmp_path / "run", tensors, ranks=ranks)
    llama().config.save_pretrained(tmp_path / "run")
    with open_checkpoint(tmp_path / "run") as checkpoint:
        for name, tensor in tensors.items():
            stored = checkpoint.tensors[name]
            assert (stored.dtype, stored.shape) == ("F32", tuple(tensor.shape))
            for start in range(tensor.numel()):
                values = checkpoint.values(stored, start, tensor.numel())
                assert values.tolist() == tensor.flatten()[start:].tolist()


def test_padding_behind_each_parameter_is_skipped(tmp_path: Path) -> None:
    tensors = {
        "model.a.weight": torch.randn(7, 5),
        "model.b.weight": torch.randn(3, 3),
        "model.norm.weight": torch.randn(3),
    }
    write_stage_2(tmp_path, tensors, gap=4)
    llama().config.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        for name, tensor in tensors.items():
            assert checkpoint.values(checkpoint.tensors[name], 0, tensor.numel()).tolist() == tensor.flatten().tolist()


def test_frozen_parameters_buffers_and_tied_weights_are_there(tmp_path: Path) -> None:
    frozen = {"model.embed_tokens.weight": torch.randn(5, 3).bfloat16()}
    write_stage_3(tmp_path / "three", {"model.a.weight": torch.randn(4, 4)}, frozen=frozen)
    beside: dict[str, Any] = {
        "module": {"model.rotary.inv_freq": torch.arange(4.0), "model.a.weight": torch.zeros(4, 4)},
        "buffer_names": ["model.rotary.inv_freq"],
        "shared_params": {"lm_head.weight": "model.a.weight"},
    }
    write_stage_2(tmp_path / "two", {"model.a.weight": torch.randn(4, 4)}, **beside)
    for folder in ("two", "three"):
        llama().config.save_pretrained(tmp_path / folder)
    with open_checkpoint(tmp_path / "three") as checkpoint:
        stored = checkpoint.tensors["model.embed_tokens.weight"]
        values = torch.from_numpy(checkpoint.values(stored, 0, 15).astype("float32"))
        assert torch.equal(values.reshape(5, 3), frozen["model.embed_tokens.weight"].float())
    with open_checkpoint(tmp_path / "two") as checkpoint:
        assert checkpoint.tensors.keys() == {"model.a.weight", "model.rotary.inv_freq", "lm_head.weight"}
        tied = [checkpoint.values(checkpoint.tensors[name], 0, 16) for name in ("lm_head.weight", "model.a.weight")]
        assert tied[0].tolist() == tied[1].tolist()


LOSS_SCALER = "deepspeed.runtime.fp16.loss_scaler"


class LossScaler:
    """Stands for a class of DeepSpeed's that is stored beside the weights."""

    def __init__(self) -> None:
        self.scale = 1.0


class Trap:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not be printed",))


def test_classes_of_deepspeed_are_not_looked_up_and_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = LOSS_SCALER.split(".")
    modules = {name: types.ModuleType(name) for name in (".".join(parts[: end + 1]) for end in range(len(parts)))}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(modules[LOSS_SCALER], "LossScaler", LossScaler, raising=False)
    monkeypatch.setattr(LossScaler, "__module__", LOSS_SCALER)
    write_stage_2(tmp_path / "run", {"model.a.weight": torch.randn(4, 4)}, loss_scaler=LossScaler())
    write_stage_2(tmp_path / "trap", {"model.a.weight": torch.randn(4, 4)}, client_state=Trap())
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    for folder in ("run", "trap"):
        llama().config.save_pretrained(tmp_path / folder)
    open_checkpoint(tmp_path / "run").close()
    with pytest.raises(CheckpointError, match=r"mp_rank_00_model_states.pt: its pickle asks for 'builtins.print'"):
        open_checkpoint(tmp_path / "trap").close()
    assert "this must not be printed" not in capsys.readouterr().out


def remove_rank(folder: Path) -> None:
    next(folder.glob("*rank_1_mp_rank_00_optim_states.pt")).unlink()


def remove_model(folder: Path) -> None:
    for file in folder.glob("*model_states.pt"):
        file.unlink()


def truncate(folder: Path) -> None:
    path = next(folder.glob("*rank_1_mp_rank_00_optim_states.pt"))
    path.write_bytes(path.read_bytes()[:-200])


def split(folder: Path) -> None:
    (folder / "mp_rank_01_model_states.pt").write_bytes(b"")


def larger(folder: Path) -> None:
    path = folder / "mp_rank_00_model_states.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        state["param_shapes"][0]["model.a.weight"] = torch.Size([400, 4])
        torch.save(state, path)
    else:
        truncate(folder)


@pytest.mark.parametrize(
    "beside",
    [
        {"shared_params": [1]}, {"buffer_names": 3}, {"frozen_param_shapes": {"a": (4,)}, "frozen_param_fragments": [1]},
        {"param_shapes": None}, {"param_shapes": [{"a": "b"}]}, {"param_shapes": [{"a": (-1,)}]}, {"module": 3, "buffer_names": ["a"]},
    ],
)  # fmt: skip
def test_states_that_cannot_be_are_refused_in_one_line(beside: dict[str, Any], tmp_path: Path) -> None:
    write_stage_2(tmp_path / "run", {"model.a.weight": torch.randn(4, 4)}, **beside)
    llama().config.save_pretrained(tmp_path / "run")
    if "module" in beside:  # a buffer that is named and not there is none of the weights
        open_checkpoint(tmp_path / "run").close()
        return
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "run").close()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("writer", ["stage 2", "stage 3"])
@pytest.mark.parametrize("damage", [remove_rank, remove_model, truncate, split, larger])
def test_a_damaged_folder_is_refused_in_one_line(writer: str, damage: Any, tmp_path: Path) -> None:
    WRITERS[writer](tmp_path / "run", {"model.a.weight": torch.randn(40, 4), "model.norm.weight": torch.randn(3)})
    llama().config.save_pretrained(tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "run").close()
    text = str(caught.value)
    assert str(tmp_path / "run") in text
    assert "\n" not in text
