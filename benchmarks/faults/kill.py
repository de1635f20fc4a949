"""Kill `deltamend repair` of a real pair at random moments: is OUT ever half-made, and can every run be resumed?

    python -m benchmarks.faults.kill BASE FINETUNED [--times 10] [--seed 0]

The exit code is 1 if a half-made OUT was seen, or if a resumed run ended with other bytes than an undisturbed one.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults.promises import content
from benchmarks.shared.arguments import script_parser
from benchmarks.shared.measure import DELTAMEND, machine, run


def main() -> int:
    """Print a table."""
    parser = script_parser(__doc__)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("finetuned", type=Path, help="folder of the fine-tuned model")
    parser.add_argument("--times", type=int, default=10, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    wrong = 0
    print(
        f"{machine()}\n\n| killed after, s | tensors finished | OUT after the kill | after --resume |\n|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory(prefix="deltamend-kill-", dir=arguments.finetuned.parent) as scratch:
        whole, out = Path(scratch) / "whole", Path(scratch) / "out"
        command = (*DELTAMEND, "repair", "--quiet", arguments.base, arguments.finetuned)
        length = run((*command, whole)).wall
        expected = content(whole)
        for _ in range(arguments.times):
            after = moments.uniform(0.3, 1.0) * length  # before that, Python is still importing
            process = subprocess.Popen((*command, out))
            time.sleep(after)
            process.kill()
            process.wait()
            journal = out.with_name(".out.deltamend-partial") / "journal.jsonl"
            finished = len(journal.read_text().splitlines()) - 1 if journal.exists() else 0
            seen = "absent" if not out.exists() else "whole" if content(out) == expected else "HALF-MADE"
            run((*command, out, "--resume"))
            resumed = "same bytes" if content(out) == expected else "OTHER BYTES"
            wrong += (seen == "HALF-MADE") + (resumed == "OTHER BYTES")
            print(f"| {after:.2f} | {finished} | {seen} | {resumed} |", flush=True)
            for file in out.iterdir():
                file.unlink()
            out.rmdir()
    print(f"\n{arguments.times} kills, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
