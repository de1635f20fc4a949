"""Time and peak memory of whole commands, and what machine they ran on."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Usage:
    """One command: wall-clock and processor seconds, and peak resident memory in bytes."""

    wall: float
    cpu: float
    peak: int


def run(command: Sequence[str | Path]) -> Usage:
    """Run a command to its end, in a process of its own, and measure it.

    Raises:
        RuntimeError: it failed; its output is in the message.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None  # noqa: S101 - it was asked for
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed: {errors[-2000:]}")
    return Usage(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def alternate(commands: dict[str, Sequence[str | Path]], outs: Sequence[Path], repeats: int) -> dict[str, list[Usage]]:
    """Run commands in turn, `repeats` times after one warm-up each, removing `outs` before every run."""
    found: dict[str, list[Usage]] = {name: [] for name in commands}
    for round_ in range(repeats + 1):
        for name, command in commands.items():
            for out in outs:
                shutil.rmtree(out, ignore_errors=True)
            usage = run(command)
            if round_:
                found[name].append(usage)
    return found


def median(usages: Sequence[Usage], field: str) -> float:
    """Median of one figure of several runs."""
    return float(statistics.median(getattr(usage, field) for usage in usages))


def machine() -> str:
    """Processor, cores, memory and library versions, in one line."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy", "safetensors"))
    return f"{names[0]}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB; Python {platform.python_version()}, {packages}"


def apart(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call a function in a process of its own and return what it returns.

    A command's peak memory, as the kernel counts it, is never below that of the process that started it.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


DELTAMEND = (sys.executable, "-m", "deltamend")
