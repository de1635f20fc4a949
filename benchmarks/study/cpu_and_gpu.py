"""How far a base model answers on a GPU as it does on the CPU, item by item, from the records of a study.

python -m benchmarks.study.cpu_and_gpu docs/results/smollm2 --record benchmarks/results/study/cpu_and_gpu.txt
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.shared.arguments import script_parser
from deltamend.study.records import BaseRecord, read_record

SUFFIX = ".json.xz"


def lines(out: Path) -> Iterator[str]:
    """One for each base and task that was asked on both."""
    for path in sorted((out / "bases").glob(f"*__cuda{SUFFIX}")):
        name = path.name.removesuffix(f"__cuda{SUFFIX}")
        there, here = (read_record(file, BaseRecord) for file in (path, path.with_name(f"{name}{SUFFIX}")))
        if there is None or here is None:
            raise SystemExit(f"{path}: not asked on the CPU as well")
        yield f"{name}: {here.machine}, and {there.machine}"
        for task, asked in here.evaluation.tasks.items():
            scores = {item.id: item.score for item in there.evaluation.tasks[task].items}
            if scores.keys() != {item.id for item in asked.items}:
                raise SystemExit(f"{path}: {task} has other items on the CPU")
            gaps = [abs(item.score - scores[item.id]) for item in asked.items]
            yield f"  {task}: {len(gaps)} items, {sum(map(bool, gaps))} differ, by {max(gaps):.1e} at most"


def main() -> None:
    """Compare and write."""
    parser = script_parser(__doc__)
    parser.add_argument("out", type=Path, help="the study's folder")
    parser.add_argument("--record", type=Path, required=True, help="where to write")
    arguments = parser.parse_args()
    text = "\n".join(lines(arguments.out)) + "\n"
    print(text, end="")
    arguments.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
