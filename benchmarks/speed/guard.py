"""A guard of the speed of three paths: filtering, element by element, and what is not touched.

    python -m benchmarks.speed.guard [--record]

Seconds say nothing on another machine, or beside other work. So each path is measured in units of a few lines of numpy and
hashlib that need the same parts of the processor: products of matrices, passes over memory, SHA-256. Both are run in turn, in
one thread, by processor time. `--record` puts the ratios into benchmarks/results/speed/guard.json, under the kind of processor.
Without it the ratios are compared with those, and a path that takes a fifth more than it did is an error.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import deltamend
from benchmarks.shared.arguments import script_parser
from benchmarks.shared.paths import RESULTS
from benchmarks.speed.one_matrix import synthetic
from deltamend.machine.threads import one_thread_each
from deltamend.spectrum.decompositions import Workspace
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.thresholds import GavishDonoho

RECORD = RESULTS / "speed" / "guard.json"
LOSS = 1.2
"""A path is slower than it was where its ratio is this many times the recorded one."""
ROUNDS = 9
ATTEMPTS = 3
"""A path that seems slower is measured again: other work on the machine can only make it look slower, not faster."""
_MATRICES, _SIDE = 8, 1024


def processor() -> str:
    """The processor by its name and the widest vectors it has; ratios are compared between equal ones only."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "unknown")
    flags = set(text.split())
    vectors = next((one for one in ("avx512f", "avx2") if one in flags), "neither AVX2 nor AVX-512")
    return f"{name}, {vectors}{', sha_ni' if 'sha_ni' in flags else ''}"


def ratio(path: Callable[[], object], unit: Callable[[], object]) -> float:
    """How many times the processor time of `unit` a path takes: the smaller of two estimates, as noise only adds."""
    taken: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        times = []
        for work in (path, unit):
            started = time.process_time()
            work()
            times.append(time.process_time() - started)
        taken.append((times[0], times[1]))
    least = min(one for one, _ in taken) / min(other for _, other in taken)
    return min(least, statistics.median(one / other for one, other in taken))


def filtering() -> tuple[Callable[[], object], Callable[[], object]]:
    """DG-Hard of one matrix, and products of it with itself."""
    delta, workspace = synthetic((768, 2304), 0.015), Workspace()
    kept = np.empty_like(delta)

    def products() -> None:
        for _ in range(4):
            delta @ delta.T

    return lambda: filter_delta(delta, GavishDonoho(), workspace=workspace).apply(delta, kept), products


@contextmanager
def made_pair(*, changed: bool) -> Iterator[Path]:
    """A folder with `base` and `finetuned`, in bf16, equal unless `changed`; in memory where there is such a file system."""
    memory = Path("/dev/shm")  # the time that a disk takes for a file varies  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="deltamend-guard-", dir=memory if memory.is_dir() else None) as scratch:
        generator = torch.Generator().manual_seed(0)
        base = {
            f"model.layers.{number}.mlp.up_proj.weight": 0.02 * torch.randn(_SIDE, _SIDE, generator=generator)
            for number in range(_MATRICES)
        }
        step = 1e-3 if changed else 0.0
        tuned = {name: one + step * torch.randn(one.shape, generator=generator) for name, one in base.items()}
        for side, tensors in (("base", base), ("finetuned", tuned)):
            folder = Path(scratch, side)
            folder.mkdir()
            (folder / "config.json").write_text('{"model_type": "llama"}')
            save_file({name: one.bfloat16() for name, one in tensors.items()}, folder / "model.safetensors")
        yield Path(scratch)


def repaired(folder: Path, method: str) -> Callable[[], object]:
    """A whole repair of the pair in a folder, by one worker."""

    def run() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        deltamend.repair(folder / "base", folder / "finetuned", folder / "out", method=method, workers=1)

    return run


def passes() -> None:
    """What a merge of two sides cannot do without, and the hashes of two inputs and an output."""
    first, second = (np.full((_SIDE, _SIDE), value, np.float32) for value in (0.5, 0.25))
    for _ in range(_MATRICES):
        delta = first - second
        np.abs(delta).max()
        delta *= np.float32(0.5)
        delta += second
        delta.astype(np.float16)
    hashlib.sha256(bytes(3 * 2 * _MATRICES * _SIDE**2)).digest()


def copying(folder: Path) -> Callable[[], object]:
    """A copy of FINETUNED, and two hashes."""
    data = (folder / "finetuned" / "model.safetensors").read_bytes()

    def copy() -> None:
        for _ in range(2):
            hashlib.sha256(data).digest()
        (folder / "copy").write_bytes(data)

    return copy


def measured(paths: tuple[str, ...] = ("filter", "elementwise", "untouched")) -> dict[str, float]:
    """The ratios of the paths that are named."""
    found: dict[str, float] = {}
    with one_thread_each():
        if "filter" in paths:
            found["filter"] = ratio(*filtering())
        if "elementwise" in paths:
            with made_pair(changed=True) as folder:
                found["elementwise"] = ratio(repaired(folder, "ties"), passes)
        if "untouched" in paths:
            with made_pair(changed=False) as folder:
                found["untouched"] = ratio(repaired(folder, "dg-hard"), copying(folder))
    return found


def slower(found: Mapping[str, float], recorded: Mapping[str, float]) -> tuple[str, ...]:
    """The paths that take a fifth more than they did."""
    return tuple(name for name, one in found.items() if one > LOSS * recorded[name])


def checked(recorded: Mapping[str, float]) -> tuple[dict[str, float], tuple[str, ...]]:
    """The ratios, and the paths that are slower than recorded in every attempt."""
    found = measured()
    for _ in range(ATTEMPTS - 1):
        if not (late := slower(found, recorded)):
            break
        found |= {name: min(found[name], again) for name, again in measured(late).items()}
    return found, slower(found, recorded)


def read_record() -> dict[str, dict[str, float]]:
    """The recorded ratios, by the kind of processor."""
    content: dict[str, dict[str, float]] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return content


def main() -> None:
    """Print the ratios; record them, or compare them with those that are recorded."""
    parser = script_parser(__doc__)
    parser.add_argument("--record", action="store_true", help="keep these ratios as what later ones are compared with")
    arguments = parser.parse_args()
    known, kind = read_record(), processor()
    if arguments.record:
        several = [measured() for _ in range(ATTEMPTS)]
        found = {name: round(statistics.median(one[name] for one in several), 3) for name in several[0]}
        RECORD.write_text(json.dumps({**known, kind: found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{kind}: {found}")
        return
    if kind not in known:
        raise SystemExit(f"nothing is recorded for this processor ({kind}); record it with --record on a sound version")
    found, late = checked(known[kind])
    for name, one in found.items():
        print(f"{name}: {one:.2f}, recorded {known[kind][name]:.2f}{', SLOWER' if name in late else ''}")
    if late:
        raise SystemExit(f"slower than recorded by more than {LOSS - 1:.0%}: {', '.join(late)}")


if __name__ == "__main__":
    main()
