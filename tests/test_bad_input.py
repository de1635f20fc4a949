"""Every bad input: one line that names the file or tensor and what to do, exit 1, OUT untouched, no traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deltamend
from deltamend.methods.dg_hard import DGHard
from tests.conftest import Pair, Printed, gpt2
from tests.reference import load

Cli = Callable[..., Printed]
Damage = Callable[[Pair], None]


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def first_shard(pair: Pair) -> Path:
    return min(pair.finetuned.glob("model-*.safetensors"))


def truncate(path: Path, keep: int) -> None:
    with path.open("r+b") as file:
        file.truncate(keep)


def poison(path: Path, name: str, value: float) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[3] = value

    edit_tensors(path, change)


def no_base_folder(pair: Pair) -> None:
    shutil.rmtree(pair.base)


def no_config(pair: Pair) -> None:
    (pair.finetuned / "config.json").unlink()


def broken_config(pair: Pair) -> None:
    (pair.finetuned / "config.json").write_text("{")


def no_weights(pair: Pair) -> None:
    (pair.base / "model.safetensors").rename(pair.base / "consolidated.pth")


def no_torch_file(pair: Pair) -> None:
    (pair.base / "model.safetensors").rename(pair.base / "pytorch_model.bin")


def legacy_torch_file(pair: Pair) -> None:
    (pair.base / "model.safetensors").unlink()
    torch.save(load(pair.base), pair.base / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def torch_file_that_runs_code(pair: Pair) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {pair.base / 'the-code-ran'}",)

    (pair.base / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(4), "trap": Trap()}, pair.base / "pytorch_model.bin")


def truncated_torch_file(pair: Pair) -> None:
    path = pair.base / "pytorch_model.bin"
    torch.save({"model.norm.weight": torch.ones(4)}, path)
    (pair.base / "model.safetensors").unlink()
    truncate(path, path.stat().st_size // 2)


def truncated_data(pair: Pair) -> None:
    shard = first_shard(pair)
    truncate(shard, shard.stat().st_size - 10)


def truncated_header(pair: Pair) -> None:
    truncate(first_shard(pair), 100)


def empty_shard(pair: Pair) -> None:
    truncate(first_shard(pair), 0)


def corrupt_header(pair: Pair) -> None:
    with first_shard(pair).open("r+b") as file:
        file.seek(8)
        file.write(b"}}}}")


def overlapping_tensors(pair: Pair) -> None:
    header = (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
    )
    (pair.base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))


def missing_shard(pair: Pair) -> None:
    first_shard(pair).unlink()


def index_leads_outside(pair: Pair) -> None:
    index = pair.finetuned / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=dict.fromkeys(weight_map, "../base/model.safetensors"))


def index_without_map(pair: Pair) -> None:
    edit_json(pair.finetuned / "model.safetensors.index.json", weight_map=[])


def index_of_other_tensors(pair: Pair) -> None:
    index = pair.finetuned / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={**weight_map, "ghost": first_shard(pair).name})


def nan_in_matrix(pair: Pair) -> None:
    poison(pair.base / "model.safetensors", "model.layers.1.mlp.up_proj.weight", float("nan"))


def inf_in_norm(pair: Pair) -> None:
    for shard in pair.finetuned.glob("model-*.safetensors"):
        if "model.norm.weight" in load_file(shard):
            poison(shard, "model.norm.weight", float("inf"))


def other_architecture(pair: Pair) -> None:
    gpt2().save_pretrained(pair.base)


def other_shapes(pair: Pair) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(64, 64, dtype=torch.bfloat16)

    edit_tensors(pair.base / "model.safetensors", change)


def rows_without_a_resized_vocabulary(pair: Pair) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:100].clone()

    edit_tensors(pair.base / "model.safetensors", change)


def nothing_in_common(pair: Pair) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"{name}.of.another.kind"] = tensors.pop(name)

    edit_tensors(pair.base / "model.safetensors", change)


def packed_int4(pair: Pair) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(8, 64, dtype=torch.int32)

    edit_tensors(pair.base / "model.safetensors", change)


def fp8_with_scales(pair: Pair) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    edit_tensors(pair.base / "model.safetensors", change)


def quantised_config(pair: Pair) -> None:
    packed_int4(pair)
    edit_json(pair.base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def placeholders_of_zero3(pair: Pair) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "layers" in name:
                tensors[name] = torch.empty(0, dtype=torch.bfloat16)

    edit_tensors(first_shard(pair), change)


CASES: dict[Damage, tuple[str, ...]] = {
    no_base_folder: ("base: no such folder", "give the folder"),
    no_config: ("finetuned/config.json: missing", "save_pretrained"),
    broken_config: ("finetuned/config.json: not valid JSON", "download it again"),
    no_weights: ("no model.safetensors", "found only consolidated.pth", "save_pretrained"),
    no_torch_file: ("base/pytorch_model.bin", "not a PyTorch file", "save_pretrained"),
    legacy_torch_file: ("base/pytorch_model.bin", "not a PyTorch file of version 1.6", "save_pretrained"),
    torch_file_that_runs_code: ("base/pytorch_model.bin", "would run code", "do not use this checkpoint"),
    truncated_torch_file: ("base/pytorch_model.bin", "truncated", "save_pretrained"),
    truncated_data: ("model-00001-of", "truncated or corrupt", "download it again"),
    truncated_header: ("model-00001-of", "truncated", "download it again"),
    empty_shard: ("model-00001-of", "truncated", "download it again"),
    corrupt_header: ("model-00001-of", "corrupt header", "download it again"),
    overlapping_tensors: ("base/model.safetensors", "tensor 'b' overlaps", "download it again"),
    missing_shard: ("names the shard 'model-00001-of", "missing", "download it again"),
    index_leads_outside: ("'../base/model.safetensors'", "not a .safetensors file of its own folder", "do not use"),
    index_without_map: ("index.json", "no weight_map", "download it again"),
    index_of_other_tensors: ("tensor 'ghost'", "in no shard", "rebuild the index"),
    nan_in_matrix: ("'model.layers.1.mlp.up_proj.weight' holds NaN or Inf in BASE", "give an undamaged checkpoint"),
    inf_in_norm: ("'model.norm.weight' holds NaN or Inf in FINETUNED", "give an undamaged checkpoint"),
    other_architecture: ("model_type is 'gpt2' in BASE and 'llama' in FINETUNED", "give the base model"),
    other_shapes: ("'model.layers.0.mlp.up_proj.weight'", "[64, 64]", "[160, 64]", "give the base model"),
    rows_without_a_resized_vocabulary: ("'lm_head.weight'", "not a resized vocabulary", "give the base model"),
    nothing_in_common: ("no matrix has the same name", ".of.another.kind'", "give a base of the same layout"),
    packed_int4: ("'model.layers.0.mlp.up_proj.qweight'", "quantised", "give the unquantised checkpoint"),
    fp8_with_scales: ("'model.layers.0.mlp.up_proj.weight'", "F8_E4M3", "give the unquantised checkpoint"),
    quantised_config: ("base/model.safetensors", "up_proj.scales' is missing", "give the unquantised checkpoint"),
    placeholders_of_zero3: ("FINETUNED was saved unassembled", "has the shape [0]", "zero_to_fp32.py"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", CASES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("out_exists", [False, True], ids=["no-out", "with-out"])
def test_a_damaged_input_is_one_line_and_leaves_out_alone(
    damage: Damage, out_exists: bool, own_pair: Pair, tmp_path: Path, deltamend_cli: Cli
) -> None:
    damage(own_pair)
    out = tmp_path / "out"
    if out_exists:
        out.mkdir()
        (out / "earlier.txt").write_text("mine")
    printed = deltamend_cli("repair", own_pair.base, own_pair.finetuned, out, "--overwrite")
    assert_one_line(printed, CASES[damage])
    assert {path.name for path in tmp_path.iterdir()} - {"base", "finetuned"} == ({"out"} if out_exists else set())
    if out_exists:
        assert [(path.name, path.read_text()) for path in out.iterdir()] == [("earlier.txt", "mine")]


def assert_one_line(printed: Printed, pieces: tuple[str, ...]) -> None:
    assert printed.code == 1
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("deltamend: ")
    for piece in pieces:
        assert piece in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "how"),
    [("base", "is"), ("finetuned/inside", "lies inside"), (".", "contains"), ("link-to-base", "is")],
)
def test_out_may_not_touch_an_input(place: str, how: str, own_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    (tmp_path / "link-to-base").symlink_to(own_pair.base)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    printed = deltamend_cli("repair", own_pair.base, own_pair.finetuned, tmp_path / place, "--overwrite")
    assert_one_line(printed, (f"OUT {how} the input", "give a folder outside the inputs"))
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_out_that_is_not_empty_needs_overwrite(own_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    printed = deltamend_cli("repair", own_pair.base, own_pair.finetuned, out)
    assert_one_line(printed, ("not empty", "--overwrite"))
    assert (out / "mine.txt").read_text() == "mine"


def test_out_that_is_a_file(own_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    (tmp_path / "out").write_text("mine")
    printed = deltamend_cli("repair", own_pair.base, own_pair.finetuned, tmp_path / "out", "--overwrite")
    assert_one_line(printed, ("exists and is not a folder",))
    assert (tmp_path / "out").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=100k", "none", disk], capture_output=True).returncode != 0:
        pytest.skip("this machine does not allow mounting a tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_too_small(own_pair: Pair, small_disk: Path, deltamend_cli: Cli) -> None:
    printed = deltamend_cli("repair", own_pair.base, own_pair.finetuned, small_disk / "out")
    assert_one_line(printed, ("the disk is full", "free space"))
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_half_way(
    own_pair: Pair, tmp_path: Path, deltamend_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.pwrite
    calls = iter(range(1000))

    def fail_late(descriptor: int, data: bytes, position: int) -> int:
        if next(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", fail_late)
    printed = deltamend_cli("repair", own_pair.base, own_pair.finetuned, tmp_path / "out")
    assert_one_line(printed, ("the disk is full", "free space"))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "finetuned"}


def test_an_input_that_changes_during_the_run(own_pair: Pair, tmp_path: Path) -> None:
    shard = first_shard(own_pair)

    def touch(name: str, share: float) -> None:
        os.utime(shard, ns=(1, 1 + len(name) + int(100 * share)))

    with pytest.raises(deltamend.CheckpointError, match="changed during the run; start again"):
        deltamend.repair(own_pair.base, own_pair.finetuned, tmp_path / "out", progress=touch)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "finetuned"}


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        (["--method", "dg-hrad"], ("no method 'dg-hrad'", "did you mean 'dg-hard'")),
        (["--method", "wise-ft", "--set", "alpha=2"], ("'alpha'", "less than or equal to 1")),
        (["--method", "wise-ft", "--set", "beta=2"], ("'beta'", "its parameters are: alpha")),
        (["--set", "alpha"], ("'alpha' is not KEY=VALUE",)),
        (["--include", "("], ("--include: '('", "not a regular expression")),
        (["--out-dtype", "int3"], ("--out-dtype: 'int3' is not a data type that can be written", "bf16")),
        (["--max-shard-size", "much"], ("--max-shard-size: 'much'", "5GB")),
    ],
)
def test_an_option_that_makes_no_sense(
    options: list[str], pieces: tuple[str, ...], llama_pair: Pair, tmp_path: Path, deltamend_cli: Cli
) -> None:
    printed = deltamend_cli("repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", *options)
    assert printed.code == 2
    for piece in pieces:
        assert piece in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["repair"], ["repair", "a", "b"], ["nonsense"], ["repair", "a", "b", "c", "--workers", "0"]]
)
def test_wrong_usage_exits_2(arguments: list[str], deltamend_cli: Cli) -> None:
    printed = deltamend_cli(*arguments)
    assert printed.code == 2
    assert "Traceback" not in printed.err


def test_a_traceback_is_shown_when_asked_for(tmp_path: Path, deltamend_cli: Cli) -> None:
    printed = deltamend_cli("repair", tmp_path / "a", tmp_path / "b", tmp_path / "c", "-vv")
    assert printed.code == 1
    assert "Traceback" in printed.err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, own_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    (own_pair.base / name).unlink(missing_ok=True)
    os.mkfifo(own_pair.base / name)
    printed = deltamend_cli("repair", own_pair.base, own_pair.finetuned, tmp_path / "out")
    assert_one_line(printed, (f"base/{name}: not a regular file",))


def test_folders_that_were_made_for_out_go_again(own_pair: Pair, tmp_path: Path, deltamend_cli: Cli) -> None:
    nan_in_matrix(own_pair)
    printed = deltamend_cli("repair", own_pair.base, own_pair.finetuned, tmp_path / "a" / "b" / "out")
    assert_one_line(printed, ("holds NaN or Inf in BASE",))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "finetuned"}


@pytest.mark.parametrize(
    ("error", "piece"),
    [
        (np.linalg.LinAlgError("did not converge"), "did not converge"),
        (MemoryError(), "there is not enough memory to repair it; use --workers 1, or a machine with more memory"),
    ],
)
def test_a_method_that_fails_names_the_tensor(
    error: Exception, piece: str, own_pair: Pair, tmp_path: Path, deltamend_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(DGHard, "apply", fail)
    printed = deltamend_cli("repair", own_pair.base, own_pair.finetuned, tmp_path / "out")
    assert_one_line(printed, ("deltamend: tensor '", piece))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "finetuned"}


@pytest.mark.slow
def test_mutated_headers_indexes_and_configs_are_refused_or_repaired() -> None:
    """In a process of its own, whose memory is limited; `benchmarks/faults/every_fault.py` tries 10,000."""
    root = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-m", "tests.mutations", "--count", "500"],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stdout + found.stderr
    tally = json.loads(found.stdout)["tally"]
    assert tally["refused"] + tally["repaired"] == 500
    assert tally["repaired"] >= 5
