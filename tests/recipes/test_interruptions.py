"""`deltamend finetune` that is killed at a random moment: OUT is whole or not there, and a resumed run ends with the same bytes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deltamend.checkpoint.hashing import hash_folder
from deltamend.recipes.fine_tuning import RECORD_FILE
from tests.conftest import llama
from tests.evaluation.conftest import save_tokenizer

pytestmark = pytest.mark.slow

KILLS = 4
STEPS = 12
FORKS = """
import json, os, signal, sys, time
import deltamend.cli, peft, torch, transformers, trl
from deltamend.recipes import trl_training
from tests.forked_command_line import become_command_line
torch.set_num_threads(1)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        def quiet():
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1):
                os.dup2(nothing, stream)
        become_command_line(asked["arguments"], quiet, __import__("traceback").print_exc)
    if asked["kill_after"] is not None:
        time.sleep(asked["kill_after"])
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs each command in a fork of a process that has imported everything, and kills it if it is asked to."""


class Runs:
    """Runs commands one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, arguments: list[Any], kill_after: float | None = None) -> int:
        """The exit code of a command; -9 if it was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps({"arguments": [str(one) for one in arguments], "kill_after": kill_after})
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@pytest.fixture
def runs() -> Iterator[Runs]:
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Runs(process)
        assert process.stdin is not None
        process.stdin.close()


def test_a_run_that_is_killed_at_any_moment_leaves_out_whole_or_not_at_all_and_goes_on(
    runs: Runs, tmp_path: Path
) -> None:
    base, data = tmp_path / "base", tmp_path / "data.jsonl"
    llama(torch.float32, vocab_size=save_tokenizer(base), tied=True).save_pretrained(base)
    lines = [{"prompt": f"{number}+1=", "completion": f"{number + 1}"} for number in range(20)]
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    options = ["--steps", STEPS, "--batch", 4, "--checkpoint-every", 2, "--recipe", "replay", "--old", data, "-q"]

    def command(out: Path, *more: str) -> list[Any]:
        return ["finetune", base, "--data", data, out, *options, *more]

    assert runs.run(command(tmp_path / "whole")) == 0  # the first also loads what is loaded late
    started = time.monotonic()
    assert runs.run(command(tmp_path / "again")) == 0
    took = time.monotonic() - started
    wanted = hash_folder(tmp_path / "whole").weights
    draw = random.Random(3)
    killed = 0
    for number in range(KILLS):
        out = tmp_path / f"out-{number}"
        code = runs.run(command(out), took * draw.random() * 1.1)
        while code != 0:
            killed += 1
            assert code == -9
            assert not out.exists() or (out / RECORD_FILE).exists()
            more = None if killed % 3 == 0 else took * draw.random() * 1.1  # some are killed again
            code = runs.run(command(out, "--resume"), more)
        assert hash_folder(out).weights == wanted
        assert sorted(path.name for path in out.iterdir()) == sorted(
            path.name for path in (tmp_path / "whole").iterdir()
        )
    assert killed >= KILLS // 2
    outputs = {f"out-{number}" for number in range(KILLS)} | {"whole", "again", "base", "data.jsonl"}
    left = {path.name for path in tmp_path.iterdir()} - outputs
    assert left == set()
