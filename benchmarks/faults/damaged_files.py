"""Files that are cut off, changed or forged: inputs before and during a run, and outputs after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import deltamend
from benchmarks.faults.promises import KINDS, Bench, refused, run
from benchmarks.shared.paths import ROOT


def cut_before(bench: Bench, tries: int) -> Iterator[str]:
    """A weight file that ends early behind an intact header."""
    for number in range(tries):
        files = [file for side in (bench.base, bench.finetuned) for file in sorted(side.glob("*.safetensors"))]
        file = bench.chance.choice(files)
        original = file.read_bytes()
        header = 8 + int.from_bytes(original[:8], "little")
        os.truncate(file, bench.chance.randrange(header, len(original)))
        kind = KINDS[number % 2]
        fault = refused(bench, kind, lambda kind=kind: run(bench, kind))  # type: ignore[misc]
        yield fault or ("the run did not notice" if bench.out.exists() else "")
        file.write_bytes(original)


def cut_during(bench: Bench, tries: int) -> Iterator[str]:
    """A weight file is cut off behind its header while it is read."""
    for number in range(tries):

        def cut(file: Path) -> None:
            header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
            os.truncate(file, bench.chance.randrange(header, file.stat().st_size))

        yield disturbed(bench, KINDS[number % 2], cut)


def changed_during(bench: Bench, tries: int) -> Iterator[str]:
    """A weight file is written to while it is read, its size unchanged."""
    for number in range(tries):

        def change(file: Path) -> None:
            with file.open("r+b") as opened:
                opened.seek(-bench.chance.randrange(2, 1000), os.SEEK_END)
                opened.write(b"\x01\x02")

        yield disturbed(bench, KINDS[number % 2], change)


def disturbed(bench: Bench, kind: str, action: Callable[[Path], None]) -> str:
    """Do something to a weight file at a random moment of a run, and put it back."""
    files = [file for side in (bench.base, bench.finetuned) for file in sorted(side.glob("*.safetensors"))]
    file = bench.chance.choice(files)
    original, times = file.read_bytes(), file.stat()
    moment = bench.chance.uniform(0, 0.9)
    done: list[float] = []

    def progress(_name: str, share: float) -> None:
        if share >= moment and not done:
            done.append(share)
            action(file)

    fault = refused(bench, kind, lambda: run(bench, kind, progress))
    if bench.out.exists() and not fault:
        fault = "the run did not notice"
    file.write_bytes(original)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    return fault


def flipped(bench: Bench, tries: int) -> Iterator[str]:
    """One random byte of one random file of OUT is another, and `verify` has to name the file or a tensor."""
    for number in range(tries):
        whole = bench.work.parent / KINDS[number % 2]
        file = bench.chance.choice(sorted(path for path in whole.rglob("*") if path.stat().st_size))
        position, bit = bench.chance.randrange(file.stat().st_size), 1 << bench.chance.randrange(8)
        flip(file, position, bit)
        try:
            found = deltamend.verify(whole)
        except deltamend.CheckpointError as error:
            found = [str(error)]
        flip(file, position, bit)
        yield "" if any(file.name in fault or fault.startswith("tensor ") for fault in found) else f"missed {file.name}"


def flip(file: Path, position: int, bit: int) -> None:
    """Flip one bit."""
    with file.open("r+b") as opened:
        opened.seek(position)
        (value,) = opened.read(1)
        opened.seek(position)
        opened.write(bytes([value ^ bit]))


def mutated(_bench: Bench, tries: int) -> Iterator[str]:
    """Damaged headers, indexes and configs: tests/mutations.py, seeds 0 on, under a limit on memory and time."""
    yield from _seeds("tests.mutations", 0, tries)


def mutated_models(_bench: Bench, tries: int) -> Iterator[str]:
    """Damaged configs, tokenizers and templates under the commands that run a model: tests/model_mutations.py, seeds 0 on."""
    yield from _seeds("tests.model_mutations", 0, tries)


def trapped(_bench: Bench, tries: int) -> Iterator[str]:
    """Pickles that would run code: tests/torch_mutations.py, the seeds below 40."""
    yield from _seeds("tests.torch_mutations", 0, tries)


def mutated_torch(_bench: Bench, tries: int) -> Iterator[str]:
    """Damaged PyTorch files: tests/torch_mutations.py, seeds 40 on."""
    yield from _seeds("tests.torch_mutations", 40, tries)


def _seeds(module: str, first: int, tries: int) -> Iterator[str]:
    command = [sys.executable, "-m", module, "--first", str(first), "--count", str(tries)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    if found.returncode not in {0, 1} or not found.stdout:
        yield f"the process died: {found.stderr[-200:]}"
        return
    result = json.loads(found.stdout)
    yield from (f"seed {seed}: {fault}" for seed, fault in result["lost"].items())
    yield from ("" for _ in range(tries - len(result["lost"])))
