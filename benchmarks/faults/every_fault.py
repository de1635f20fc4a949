"""Break a repair in every way we know of, and count what is lost; docs/explanation/reliability.md explains the table.

    python -m benchmarks.faults.every_fault [--kills 50] [--mutations 10000] [--seed 0] [--only NAME]… [--scratch DIR] [--out FILE.md]

The repairs are of a generated pair of 18 MB a side, written as a checkpoint and as an adapter in turn. A try is lost if OUT
is there and not whole, if a resumed run ends with other bytes than an undisturbed one, if an input changed, if something was
left behind where nothing may be, if the error is not one line, or if `verify` misses a changed byte. The full disk, the
read-only file system, the second mount and the other user need root on Linux. The exit code is 1 if anything was lost.

`python -m benchmarks.faults.kill` kills runs of a real pair.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults.damaged_files import (
    changed_during,
    cut_before,
    cut_during,
    flipped,
    mutated,
    mutated_models,
    mutated_torch,
    trapped,
)
from benchmarks.faults.file_systems import full_disk, not_allowed, read_error, read_only
from benchmarks.faults.hostile_files import (
    damaged_cache,
    foreign_work_folders,
    links_in_study_folders,
    odd_archives,
    outputs_on_inputs,
)
from benchmarks.faults.hostile_text import (
    closed_streams,
    hostile_names,
    hostile_records,
    hostile_templates,
    hostile_yaml,
)
from benchmarks.faults.interruptions import interrupted, killed
from benchmarks.faults.promises import KINDS, Bench, Fault, content, state
from benchmarks.shared.arguments import script_parser
from benchmarks.shared.made_up_checkpoint import ModelShape, write_checkpoint
from benchmarks.shared.measure import DELTAMEND, apart, machine

SHAPE = ModelShape(layers=6, hidden=256, intermediate=1024, key_value=128, vocabulary=12_000)

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
    "a PyTorch file with its members in another order, or odd ones": (odd_archives, 300),
    "an output that is an input, through links, hard links and mounts": (outputs_on_inputs, 300),
    "a work folder that no run made, or with links": (foreign_work_folders, 300),
    "a damaged entry of the cache": (damaged_cache, 300),
    "a study's folder with links, or cells of nearly one name": (links_in_study_folders, 300),
    "YAML that unfolds, nests or is none": (hostile_yaml, 300),
    "a template that loops, grows or reaches for Python": (hostile_templates, 300),
    "a record that unpacks to gigabytes, nests or is damaged": (hostile_records, 300),
    "names that act on a terminal or in Markdown": (hostile_names, 300),
    "standard output or error that is full or closed": (closed_streams, 300),
    "a mutated config, tokenizer or template under a command that runs a model": (mutated_models, 500),
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
    parser = script_parser(__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how often a run is killed")
    parser.add_argument("--mutations", type=int, default=10_000, help="number of damaged headers, indexes and configs")
    parser.add_argument("--seed", type=int, default=0, help="of what is left to chance")
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
