"""Run the benchmarks of speed and memory one after another and write RESULTS.md; this is what `make bench` does.

    python -m benchmarks.run_all [--only NAME …] [--scratch DIR]

It takes about an hour on two cores. What each benchmark prints is kept in benchmarks/output/, so that a run that was
cut off goes on where it stopped; remove a file there to have that benchmark run again. The real pair is the one that
`deltamend demo` leaves in its cache.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.paths import RESULTS, ROOT
from deltamend.machine.cache import default_cache_dir

OUTPUT = ROOT / "benchmarks" / "output"
NOTES = RESULTS / "NOTES.md"

TITLES = {
    "one_matrix": "One matrix, one thread",
    "one_matrix_two_threads": "One matrix, two threads",
    "whole_command": "The whole command on a real pair",
    "large_pair": "A pair with the shapes of Llama-3.2-3B",
    "unchanged_pair": "The path on which nothing is filtered",
    "workers": "Workers and BLAS threads",
    "float64_svd": "Agreement with a float64 SVD",
    "kill": "Killed at random moments",
}


def commands(scratch: Path | None) -> dict[str, list[str]]:
    """What each benchmark is run with, after `python -m benchmarks.`."""
    pair = real_pair()
    where = [] if scratch is None else ["--scratch", str(scratch)]
    return {
        "one_matrix": ["speed.one_matrix", "--threads", "1", "--pair", *pair],
        "one_matrix_two_threads": ["speed.one_matrix", "--threads", "2"],
        "whole_command": ["speed.whole_command", *pair],
        "large_pair": ["speed.large_pair", *where],
        "unchanged_pair": ["speed.unchanged_pair", *where],
        "workers": ["speed.workers", *pair],
        "float64_svd": ["correctness.float64_svd", *pair],
        "kill": ["faults.kill", *pair],
    }


def real_pair() -> list[str]:
    """Folders of the demo's base and fine-tuned model."""
    cache = default_cache_dir()
    found = [sorted(cache.glob(f"{kind}-smollm2*")) for kind in ("base", "finetuned")]
    if not all(found):
        raise SystemExit(f"{cache}: the demo's models are not there; run `make demo` first")
    return [str(folders[-1]) for folders in found]


def main() -> None:
    """Run what has no output yet, then write RESULTS.md."""
    parser = script_parser(__doc__)
    parser.add_argument("--only", nargs="*", choices=TITLES, default=list(TITLES))
    parser.add_argument("--scratch", type=Path, default=None, help="where to make the large pairs; removed afterwards")
    arguments = parser.parse_args()
    OUTPUT.mkdir(exist_ok=True)
    for name, command in commands(arguments.scratch).items():
        kept = OUTPUT / f"{name}.md"
        if name in arguments.only and not kept.exists():
            print(f"{name} …", flush=True)
            done = subprocess.run(
                [sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:]],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                cwd=ROOT,
            )
            kept.write_text(done.stdout)
    write_results(commands(arguments.scratch))


def write_results(commands_run: dict[str, list[str]]) -> None:
    """Put the outputs together, with the notes on what was missed and why."""
    parts = [
        "# What was measured\n\nMade by `make bench`; the notes are written by hand in `NOTES.md`.\n",
        NOTES.read_text(),
    ]
    for name, title in TITLES.items():
        kept = OUTPUT / f"{name}.md"
        if kept.exists():
            shown = " ".join(
                "BASE" if "base-" in word else "FINETUNED" if "finetuned-" in word else word
                for word in commands_run[name]
            )
            parts.append(f"## {title}\n\n    python -m benchmarks.{shown}\n\n{kept.read_text()}")
    (RESULTS / "RESULTS.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
