"""Whether two runs of a study agree: the fine-tuned weights, and every score of every item of the models both have.

    python -m benchmarks.study.two_runs OUT AGAIN --record FILE

The exit code is 1 if anything differs, or if nothing could be compared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.shared.arguments import script_parser
from deltamend.study.records import CellRecord, read_record


def compared(first: CellRecord, second: CellRecord) -> Iterator[tuple[str, bool]]:
    """(A model with what of it is compared, whether it is the same in both)."""
    for name in (name for name in first.models if name in second.models):
        one, other = first.models[name], second.models[name]
        tasks = {task: scores.items for task, scores in one.evaluation.tasks.items()}
        again = {task: scores.items for task, scores in other.evaluation.tasks.items()}
        items = sum(map(len, tasks.values()))
        yield f"{name}: {len(tasks)} tasks, {items} items", one.key == other.key and tasks == again


def main() -> int:
    """Print one line a cell and one a model."""
    asked = script_parser(__doc__)
    asked.add_argument("out", type=Path, help="the study's folder")
    asked.add_argument("again", type=Path, help="folder of the second run")
    asked.add_argument("--record", type=Path, help="write what is printed to this file too")
    given = asked.parse_args()
    lines, all_same = [], []
    for file in sorted((given.again / "cells").iterdir()):
        first, second = (read_record(folder / "cells" / file.name, CellRecord) for folder in (given.out, given.again))
        if first is None or second is None:
            continue
        same = first.finetune.model_hash == second.finetune.model_hash
        found = [(f"{second.cell}, fine-tuned weights {second.finetune.model_hash[:16]}", same)]
        found += [(f"  {what}", is_same) for what, is_same in compared(first, second)]
        lines += [f"{what}: {'the same' if is_same else 'DIFFERENT'}" for what, is_same in found]
        all_same += [is_same for _, is_same in found]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if given.record is not None:
        given.record.write_text(text, encoding="utf-8")
    return 0 if all_same and all(all_same) else 1


if __name__ == "__main__":
    raise SystemExit(main())
