"""Break a repair in every way we know of, and count what is lost; docs/reliability.md holds the table.

    python -m benchmarks.faults.every_fault [--kills 50] [--mutations 10000] [--seed 0] [--only NAME]… [--scratch DIR] [--out FILE.md]

On a generated pair of 18 MB a side, as a checkpoint and as an adapter in turn. A try is lost if OUT is there and not whole,
if a resumed run ends with other bytes than an undisturbed one, if an input changed, if something was left behind where
nothing may be, if the error is not one line, or if `verify` misses a changed byte. The full disk, the read-only file
system and the other user need root on Linux. Exits 1 where something was lost. `kill.py` kills runs of a real pair.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import deltamend
from benchmarks.faults.kill import content
from benchmarks.shared.made_up_checkpoint import ModelShape, write_checkpoint
from benchmarks.shared.measure import DELTAMEND, apart, machine
from benchmarks.shared.paths import ROOT

SHAPE = ModelShape(layers=6, hidden=256, intermediate=1024, key_value=128, vocabulary=12_000)
KINDS = ("checkpoint", "adapter")
NOBODY = 65534


@dataclass(frozen=True)
class Bench:
    """A pair, an empty folder to work in, and what an undisturbed run of each kind writes.

    `length` is how long such a run takes from the start of the process, in seconds.
    """

    base: Path
    finetuned: Path
    work: Path
    expected: dict[str, dict[str, str]]
    length: float
    chance: random.Random

    @property
    def out(self) -> Path:
        """Where a try writes."""
        return self.work / "out"

    @property
    def partial(self) -> Path:
        """Its work folder."""
        return self.work / ".out.deltamend-partial"

    def command(self, kind: str, *options: str) -> list[str]:
        """The command that is disturbed."""
        folders = [str(folder) for folder in (self.base, self.finetuned, self.out)]
        return [*DELTAMEND, "repair", "--quiet", "--as", kind, *folders, *options]

    def clear(self) -> None:
        """Remove what a try left."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.rmtree(self.partial, ignore_errors=True)


Fault = Callable[[Bench, int], Iterator[str]]
"""Tries a number of times; gives "" for a try that kept every promise, and else what was lost."""


def state(folder: Path) -> dict[str, str]:
    """Hash of every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def absent_or_whole(bench: Bench, kind: str) -> str:
    """What is wrong with OUT, or nothing."""
    if not bench.out.exists():
        return ""
    return "" if content(bench.out) == bench.expected[kind] else "OUT is half-made"


def resumed(bench: Bench, kind: str) -> str:
    """Whether the same command with --resume ends with the bytes of an undisturbed run."""
    again = subprocess.run(bench.command(kind, "--resume"), capture_output=True, text=True)
    if again.returncode != 0:
        return f"--resume failed: {again.stderr.strip()}"
    if content(bench.out) != bench.expected[kind]:
        return "--resume ended with other bytes"
    return "the work folder was left behind" if bench.partial.exists() else ""


def refused(bench: Bench, kind: str, call: Callable[[], object]) -> str:
    """What is wrong with a call that has to fail in one line and leave nothing, or to succeed."""
    try:
        call()
    except deltamend.DeltamendError as error:
        if not str(error).isprintable():
            return f"not one line: {str(error)[:80]!r}"
        left = [path.name for path in bench.work.iterdir()]
        return f"left behind: {left}" if left else ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return absent_or_whole(bench, kind)


def killed(bench: Bench, tries: int) -> Iterator[str]:
    """Kill -9 at a random moment, then --resume."""
    for number in range(tries):
        kind = KINDS[number % 2]
        process = subprocess.Popen(bench.command(kind), stderr=subprocess.DEVNULL)
        time.sleep(bench.chance.uniform(0.25, 1.05) * bench.length)  # before that, Python is still importing
        process.kill()
        process.wait()
        yield absent_or_whole(bench, kind) or resumed(bench, kind)


def interrupted(bench: Bench, tries: int) -> Iterator[str]:
    """Ctrl-C twice, the second up to half a second later, then --resume; a run that was over before it does not count."""
    number = 0
    while number < tries:
        kind = KINDS[number % 2]
        process = subprocess.Popen(
            bench.command(kind), stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        )  # fmt: skip
        while process.poll() is None and not bench.partial.exists():  # a Ctrl-C while Python imports is Python's own
            time.sleep(0.01)
        time.sleep(bench.chance.uniform(0, 0.5) * bench.length)
        for pause in (bench.chance.uniform(0, 0.5), 0):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                time.sleep(pause)
        _, errors = process.communicate(timeout=60)
        fault = absent_or_whole(bench, kind)
        if bench.out.exists() and not fault:  # it was done, and Python perhaps on its way out
            bench.clear()
            continue
        number += 1
        lines = errors.splitlines()
        if len(lines) != 1 or "interrupted" not in lines[0]:
            fault = fault or f"exit {process.returncode}, {len(lines)} lines: {lines[-1:]}"
        yield fault or resumed(bench, kind)


def full_disk(bench: Bench, tries: int) -> Iterator[str]:
    """A file system of 1 to 110 % of the size that is needed."""
    for number in range(tries):
        kind = KINDS[number % 2]
        needed = sum(file["size"] for file in _manifest(bench, kind)["files"])
        with mounted(bench.work, "tmpfs", f"size={int(bench.chance.uniform(0.01, 1.1) * needed) >> 10}k"):
            yield refused(bench, kind, lambda kind=kind: run(bench, kind))  # type: ignore[misc]


def _manifest(bench: Bench, kind: str) -> dict[str, list[dict[str, int]]]:
    found: dict[str, list[dict[str, int]]] = json.loads((bench.work.parent / kind / "deltamend.json").read_text())
    return found


def read_only(bench: Bench, tries: int) -> Iterator[str]:
    """OUT on a read-only file system."""
    for number in range(tries):
        kind = KINDS[number % 2]
        with mounted(bench.work, "tmpfs", "ro"):
            yield refused(bench, kind, lambda kind=kind: run(bench, kind))  # type: ignore[misc]


def not_allowed(bench: Bench, tries: int) -> Iterator[str]:
    """Another user, who may not write beside OUT, or may not read one of the inputs."""
    for number in range(tries):
        kind = KINDS[number % 2]
        files = sorted(bench.finetuned.glob("*.safetensors"))
        place, mode = (bench.work, 0o555) if number % 4 < 2 else (bench.chance.choice(files), 0)
        before = place.stat().st_mode
        bench.work.chmod(0o777)
        place.chmod(mode)
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *bench.command(kind)]
        found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": "/nonexistent"})
        place.chmod(before)
        lines = found.stderr.splitlines()
        left = [path.name for path in bench.work.iterdir()]
        good = found.returncode == 1 and len(lines) == 1 and lines[0].startswith("deltamend: ") and not left
        yield "" if good else f"exit {found.returncode}, {lines[-1:]}, left {left}"


def run(bench: Bench, kind: str, progress: Callable[[str, float], None] | None = None) -> None:
    """The repair in this process."""
    deltamend.repair(bench.base, bench.finetuned, bench.out, output=kind, progress=progress)  # type: ignore[arg-type]


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


def read_error(bench: Bench, tries: int) -> Iterator[str]:
    """The disk gives EIO at one of the reads of the weights."""
    read = os.preadv
    for number in range(tries):
        kind = KINDS[number % 2]
        left = [bench.chance.randrange(0, 60)]

        def fail(descriptor: int, buffers: list[memoryview], offset: int, left: list[int] = left) -> int:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(descriptor, buffers, offset)

        os.preadv = fail  # type: ignore[assignment]
        try:
            fault = refused(bench, kind, lambda kind=kind: run(bench, kind))  # type: ignore[misc]
        finally:
            os.preadv = read
        yield fault or ("the run did not notice" if bench.out.exists() else "")


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


@contextmanager
def mounted(folder: Path, kind: str, options: str) -> Iterator[None]:
    """A file system of its own at `folder`."""
    subprocess.run(["mount", "-t", kind, "-o", options, "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


FAULTS: dict[str, tuple[Fault, int]] = {
    "kill -9 at a random moment, then --resume": (killed, 50),
    "Ctrl-C twice, then --resume": (interrupted, 20),
    "a disk that is too small": (full_disk, 20),
    "a read-only file system": (read_only, 4),
    "a folder or an input without permission": (not_allowed, 8),
    "a file that ends early behind an intact header": (cut_before, 20),
    "a file that is cut off during the run": (cut_during, 20),
    "a file that is written to during the run": (changed_during, 20),
    "a read error (EIO) half-way": (read_error, 20),
    "a flipped bit in any file of OUT, and `verify`": (flipped, 300),
    "a mutated header, index or config": (mutated, 10_000),
    "a pickle that would run code": (trapped, 40),
    "a mutated PyTorch file": (mutated_torch, 2_000),
}
"""Each with how often it is tried."""


def prepare(scratch: Path, seed: int) -> Bench:
    """Make the pair and the undisturbed outputs."""
    base, finetuned, work = scratch / "base", scratch / "finetuned", scratch / "work"
    apart(write_checkpoint, base, SHAPE, 0)
    apart(write_checkpoint, finetuned, SHAPE, 1, base)
    for name in ("tokenizer.json", "README.md"):
        (finetuned / name).write_text("{}\n")
    work.mkdir()
    scratch.chmod(0o755)
    length = 0.0
    for kind in KINDS:
        started = time.monotonic()
        subprocess.run([*DELTAMEND, "repair", "-q", "--as", kind, base, finetuned, scratch / kind], check=True)
        length = time.monotonic() - started
    expected = {kind: content(scratch / kind) for kind in KINDS}
    return Bench(base, finetuned, work, expected, length, random.Random(seed))


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="part of the name of a fault; may be repeated")
    parser.add_argument("--scratch", type=Path, default=None, help="where to write; removed afterwards")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    counts: dict[Fault, int] = {killed: given.kills, mutated: given.mutations}
    lines = ["| what | tries | lost |", "|---|---|---|"]
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="deltamend-faults-", dir=given.scratch) as scratch:
        bench = prepare(Path(scratch), given.seed)
        before = [state(side) for side in (bench.base, bench.finetuned)]
        for name, (fault, usual) in FAULTS.items():
            if given.only and not any(part in name for part in given.only):
                continue
            tries, lost = 0, 0
            for what in fault(bench, counts.get(fault, usual)):
                bench.clear()
                tries, lost = tries + 1, lost + bool(what)
                if what:
                    print(f"{name}: {what}", file=sys.stderr, flush=True)
            if before != [state(side) for side in (bench.base, bench.finetuned)]:
                lost += 1
                print(f"{name}: an input has changed", file=sys.stderr, flush=True)
            wrong += lost
            lines.append(f"| {name} | {tries:,} | {lost} |")
            print(lines[-1], flush=True)
    lines += ["", machine(), ""]
    if given.out is not None:
        given.out.write_text("\n".join(lines), encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
