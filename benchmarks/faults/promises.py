"""What a repair promises whatever happens to it, and what of that was broken in one try.

OUT is absent or whole; a resumed run ends with the bytes of an undisturbed one; an error is one line and leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import deltamend
from benchmarks.shared.measure import DELTAMEND

KINDS = ("checkpoint", "adapter")
"""Kinds of output, which are tried in turn."""


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
"""Tries something a number of times; gives "" for a try in which every promise was kept, and else what was broken."""


def state(folder: Path) -> dict[str, str]:
    """Hash of every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def content(out: Path) -> dict[str, str]:
    """Hash of every file; of the manifest without the seconds and what else may differ from run to run."""
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in out.iterdir()}
    manifest = json.loads((out / "deltamend.json").read_text())
    del manifest["run"], manifest["self_sha256"]
    for tensor in manifest["tensors"]:
        del tensor["seconds"]
    return hashes | {"deltamend.json": hashlib.sha256(json.dumps(manifest).encode()).hexdigest()}


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


def run(bench: Bench, kind: str, progress: Callable[[str, float], None] | None = None) -> None:
    """The repair in this process."""
    deltamend.repair(bench.base, bench.finetuned, bench.out, output=kind, progress=progress)  # type: ignore[arg-type]
