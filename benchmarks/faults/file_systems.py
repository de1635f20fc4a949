"""A disk that is full, read-only, out of bounds or broken."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.promises import KINDS, Bench, refused, run

NOBODY = 65534
"""Number of a user who owns nothing."""


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


@contextmanager
def mounted(folder: Path, kind: str, options: str) -> Iterator[None]:
    """A file system of its own at `folder`."""
    subprocess.run(["mount", "-t", kind, "-o", options, "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
