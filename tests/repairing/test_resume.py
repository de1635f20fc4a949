"""OUT appears whole or not at all, and an interrupted run goes on to the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import deltamend
from tests.conftest import Pair, Printed, save_pair
from tests.reference import load
from tests.repairing.test_run import without_seconds

PARTIAL = ".out.deltamend-partial"


def interrupt_after(count: int) -> Callable[[str, float], None]:
    """A progress callback that ends the run as Ctrl-C does, after `count` tensors."""
    seen: list[str] = []

    def progress(name: str, _share: float) -> None:
        seen.append(name)
        if len(seen) == count:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("count", [1, 7, 20])
def test_an_interrupted_run_goes_on(llama_pair: Pair, tmp_path: Path, count: int) -> None:
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        deltamend.repair(
            llama_pair.base, llama_pair.finetuned, tmp_path / "out", workers=1, progress=interrupt_after(count)
        )
    assert not (tmp_path / "out").exists()
    finished = (tmp_path / PARTIAL / "journal.jsonl").read_text().splitlines()
    assert len(finished) == 1 + count
    redone: list[str] = []
    report = deltamend.repair(
        llama_pair.base,
        llama_pair.finetuned,
        tmp_path / "out",
        resume=True,
        progress=lambda name, _: redone.append(name),
    )
    assert without_seconds(tmp_path / "out") == without_seconds(tmp_path / "whole")
    assert len(redone) == len(report.tensors)
    assert not (tmp_path / PARTIAL).exists()


def interrupted(pair: Pair, out: Path, count: int = 9) -> Path:
    """An interrupted run; returns its work folder."""
    with pytest.raises(KeyboardInterrupt):
        deltamend.repair(pair.base, pair.finetuned, out, workers=1, progress=interrupt_after(count))
    return out.with_name(PARTIAL)


def test_resume_does_again_what_was_damaged_meanwhile(llama_pair: Pair, tmp_path: Path) -> None:
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "whole")
    work = interrupted(llama_pair, tmp_path / "out")
    for shard in (work / "out").glob("*.safetensors"):
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    with (work / "journal.jsonl").open("a") as journal:
        journal.write('{"name": "cut off by the ki')
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", resume=True)
    assert without_seconds(tmp_path / "out") == without_seconds(tmp_path / "whole")


def test_resume_refuses_another_plan(llama_pair: Pair, tmp_path: Path, deltamend_cli: Callable[..., Printed]) -> None:
    interrupted(llama_pair, tmp_path / "out")
    printed = deltamend_cli(
        "repair", llama_pair.base, llama_pair.finetuned, tmp_path / "out", "--resume", "--out-dtype", "fp32"
    )
    assert printed.code == 1
    assert "other inputs or options" in printed.err
    assert (tmp_path / PARTIAL).exists()


def test_resume_refuses_inputs_that_were_rewritten(own_pair: Pair, tmp_path: Path) -> None:
    interrupted(own_pair, tmp_path / "out")
    for shard in own_pair.finetuned.glob("*.safetensors"):
        os.utime(shard, ns=(1, 1))
    with pytest.raises(deltamend.OutputError, match="other inputs or options"):
        deltamend.repair(own_pair.base, own_pair.finetuned, tmp_path / "out", resume=True)


def test_without_resume_an_unfinished_run_is_started_again(llama_pair: Pair, tmp_path: Path) -> None:
    interrupted(llama_pair, tmp_path / "out")
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", method="wise-ft")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert deltamend.verify(tmp_path / "out") == []


def test_resume_of_a_finished_run_changes_nothing(llama_pair: Pair, tmp_path: Path) -> None:
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    report = deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", resume=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert report.tensors
    with pytest.raises(deltamend.OutputError, match="not empty"):
        deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", resume=True, method="wise-ft")


@pytest.mark.parametrize("by", ["steps", "rule", "steps of a rule"])
def test_resume_refuses_another_file_of_a_step_or_rule_and_records_no_path(
    llama_pair: Pair, tmp_path: Path, by: str
) -> None:
    squares = tmp_path / "squares"
    save_file({name: torch.ones_like(t, dtype=torch.float32) for name, t in load(llama_pair.base).items()}, squares)
    step: dict[str, Any] = {"method": "fisher", "fisher": str(squares)}
    given: dict[str, Any] = {"method": "hybrid", "parameters": {"steps": [step, {"method": "wise-ft"}]}}
    if by == "rule":
        listed = [{"filter": "down", "value": str(squares)}, {"value": squares}]
        given = {"rules": [{"filter": "mlp", "method": "fisher", "parameters": {"fisher": listed}}]}
    elif by == "steps of a rule":
        given = {"rules": [{"filter": "mlp", **given}]}
    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", **given)
    assert str(tmp_path) not in (tmp_path / "out" / "deltamend.json").read_text()
    again = deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", resume=True, **given)
    assert not again.written
    save_file({name: 2 * tensor for name, tensor in load_file(squares).items()}, squares)
    with pytest.raises(deltamend.OutputError, match="not empty"):
        deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", resume=True, **given)
    with pytest.raises(deltamend.OutputError, match="OUT is the input"):
        deltamend.repair(llama_pair.base, llama_pair.finetuned, squares, overwrite=True, **given)


def test_two_runs_do_not_write_the_same_out(llama_pair: Pair, tmp_path: Path) -> None:
    failures: list[deltamend.OutputError] = []

    def start_another(_name: str, _share: float) -> None:
        if not failures:
            try:
                deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out")
            except deltamend.OutputError as error:
                failures.append(error)

    deltamend.repair(llama_pair.base, llama_pair.finetuned, tmp_path / "out", workers=1, progress=start_another)
    assert "another run is writing it" in str(failures[0])
    assert deltamend.verify(tmp_path / "out") == []


@pytest.fixture(scope="module")
def wide_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A pair that takes about a second to repair."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=6, vocab_size=2000
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    return save_pair(model, tmp_path_factory.mktemp("wide"), finetuned_shards="8MB")


def run_repair(base: Path, finetuned: Path, out: Path) -> None:
    """The run that is killed, in a process of its own."""
    deltamend.repair(base, finetuned, out, overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize("out_exists", [False, True], ids=["no-out", "with-out"])
def test_kill_at_random_moments(wide_pair: Pair, tmp_path: Path, out_exists: bool) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deltamend.repairing.run"])
    out = tmp_path / "out"
    deltamend.repair(wide_pair.base, wide_pair.finetuned, tmp_path / "whole")
    expected = without_seconds(tmp_path / "whole")
    for _ in range(2):  # the first starts the server, the second is as long as those that are killed
        started = time.monotonic()
        process = context.Process(target=run_repair, args=(wide_pair.base, wide_pair.finetuned, tmp_path / "timed"))
        process.start()
        process.join()
        length = time.monotonic() - started
    moments = random.Random(0)
    for _ in range(5):
        if out_exists:
            out.mkdir()
            (out / "earlier.txt").write_text("mine")
        process = context.Process(target=run_repair, args=(wide_pair.base, wide_pair.finetuned, out))
        process.start()
        time.sleep(moments.uniform(0, length))
        process.kill()
        process.join()
        earlier = {"earlier.txt": b"mine"} if out_exists else None
        found = {file.name: file.read_bytes() for file in out.iterdir()} if out.exists() else None
        if found != earlier:  # the kill came too late
            assert without_seconds(out) == expected
        deltamend.repair(wide_pair.base, wide_pair.finetuned, out, resume=True, overwrite=True)
        assert without_seconds(out) == expected
        assert not (tmp_path / PARTIAL).exists()
        for file in out.iterdir():
            file.unlink()
        out.rmdir()


@pytest.mark.slow
def test_ctrl_c_twice_is_one_line_and_goes_on(wide_pair: Pair, tmp_path: Path) -> None:
    deltamend.repair(wide_pair.base, wide_pair.finetuned, tmp_path / "whole")
    folders = (str(wide_pair.base), str(wide_pair.finetuned), str(tmp_path / "out"))
    command = [sys.executable, "-m", "deltamend", "repair", *folders]
    moments = random.Random(0)
    for _ in range(3):
        shutil.rmtree(tmp_path / PARTIAL, ignore_errors=True)
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # ignored where the tests run in the background
        )
        while process.poll() is None and not (tmp_path / PARTIAL).exists():
            time.sleep(0.01)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(moments.uniform(0, 0.05))
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert errors == "deltamend: interrupted; run the same command with --resume to continue\n"
        assert not (tmp_path / "out").exists()
    deltamend.repair(wide_pair.base, wide_pair.finetuned, tmp_path / "out", resume=True)
    assert without_seconds(tmp_path / "out") == without_seconds(tmp_path / "whole")
