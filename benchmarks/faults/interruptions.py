"""A run that is killed, or interrupted from the keyboard."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator

from benchmarks.faults.promises import KINDS, Bench, absent_or_whole, resumed


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
