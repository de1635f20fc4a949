"""Damaged PyTorch files, each made from a seed, and pickles that would run code; read in this process.

    python -m tests.torch_mutations [--count 300] [--first 0]

What counts as lost: anything but tensors or one printable line from a `DeltamendError`, a file where none belongs, code that
ran, more than 10 s. Prints the seeds of what was lost and exits 1.
"""

from __future__ import annotations

import argparse
import builtins
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import deltamend

SECONDS = 10
TRAPS = 40
"""Kinds of seeds below this number are pickles that would run code; all others are damaged bytes."""

_CALLS: tuple[tuple[Callable[..., object], Callable[[Path], tuple[object, ...]]], ...] = (
    (os.system, lambda marker: (f"touch {marker}",)),
    (os.mkdir, lambda marker: (str(marker),)),
    (subprocess.call, lambda marker: (["touch", str(marker)],)),
    (builtins.exec, lambda marker: (f"open({str(marker)!r}, 'w').close()",)),
    (builtins.eval, lambda marker: (f"open({str(marker)!r}, 'w').close()",)),
    (io.open, lambda marker: (str(marker), "w")),
    (getattr, lambda _marker: ("text", "upper")),
    (torch.load, lambda marker: (str(marker), None, None)),
)


class _Trap:
    def __init__(self, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self._reduced = call, arguments

    def __reduce__(self) -> Any:
        return self._reduced


def trapped(number: int, marker: Path) -> bytes:
    """A state dict with a trap in it, in one of five places."""
    call, arguments = _CALLS[number % len(_CALLS)]
    trap = _Trap(call, arguments(marker))
    weight = torch.ones(4, 4)
    places: tuple[object, ...] = (
        {"weight": weight, "trap": trap},
        trap,
        {"weight": weight, "nested": {"deep": [trap]}},
        {"weight": torch.nn.Parameter(weight), "pair": (weight, trap)},
        [{"weight": weight}, trap],
    )
    written = io.BytesIO()
    torch.save(places[number // len(_CALLS) % len(places)], written)
    return written.getvalue()


def damaged(number: int) -> bytes:
    """A file of four tensors with bytes overwritten, cut off, doubled or removed."""
    chance = random.Random(number)
    written = io.BytesIO()
    state = {"a.weight": torch.ones(8, 8), "b.weight": torch.ones(3, 5, dtype=torch.bfloat16), "c": torch.ones(7)}
    torch.save({**state, "view": state["a.weight"][2:4]}, written)
    content = bytearray(written.getvalue())
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(len(content))
        stop = min(len(content), start + chance.choice((1, 1, 2, 8, 200)))
        match chance.randrange(5):
            case 0:
                content[start:stop] = chance.randbytes(stop - start)
            case 1:
                content[start] ^= 1 << chance.randrange(8)
            case 2:
                del content[start:stop]
            case 3:
                content[start:start] = content[start:stop]
            case _:
                del content[max(1, start) :]
    return bytes(content)


def fault_of(number: int, folder: Path) -> str:
    """What went wrong with one seed, or nothing."""
    marker = folder / "the-code-ran"
    content = trapped(number, marker) if number < TRAPS else damaged(number)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(content)
    signal.alarm(SECONDS)
    try:
        with deltamend.open_checkpoint(folder) as checkpoint:
            for tensor in checkpoint.tensors.values():
                checkpoint.values(tensor, 0, tensor.elements)
        found = "a pickle that would run code was opened" if number < TRAPS else ""
    except deltamend.DeltamendError as error:
        found = "" if str(error).isprintable() else f"not one printable line: {error!r}"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"[:200]
    finally:
        signal.alarm(0)
    if marker.exists():
        found = "the code ran"
    strays = {path.name for path in folder.iterdir()} - {"config.json", "pytorch_model.bin"}
    return found or (f"left behind: {sorted(strays)}" if strays else "")


def lost(first: int, count: int) -> dict[int, str]:
    """The seeds that were lost, and why."""
    faults = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(first, first + count):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            if found := fault_of(number, folder):
                faults[number] = found
    return faults


def main() -> int:
    """Print what was lost as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    faults = lost(given.first, given.count)
    print(json.dumps({"tries": given.count, "lost": faults}))  # noqa: T201
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
