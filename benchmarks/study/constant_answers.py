"""What the targets of a recorded study teach: right answers of the fine-tuned models beside those of the best constant answer.

    python -m benchmarks.study.constant_answers DATA studies/smollm2.yaml docs/results/smollm2 studies/fresh.yaml docs/results/fresh --record FILE

A model that has learnt a target's form and nothing else can give one answer to every question. The best such answer is the
one that is right most often among the questions that the study asked. Where a fine-tuned model is not right far more often,
"retention" is that of the form.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.shared.arguments import script_parser
from deltamend.study.config import Study, read_study
from deltamend.study.questions import best_constant, exam_questions
from deltamend.study.records import FINETUNED, TARGET, BaseRecord, CellRecord, base_file, cell_file, read_record


def lines_of(study: Study, out: Path, data: Path) -> Iterator[str]:
    """A line for each target."""
    for target in study.targets:
        asked = exam_questions(target, data)
        constant = round(best_constant(asked) * len(asked))
        right: list[int] = []
        base: set[int] = set()
        for cell in study.cells():
            if cell.target != target:
                continue
            record = read_record(cell_file(out, cell.name), CellRecord)
            known = read_record(base_file(out, cell.model.name, target.name, "cpu"), BaseRecord)
            if record is not None:
                items = record.models[FINETUNED].evaluation.tasks[TARGET].items
                right.append(round(sum(item.score for item in items)))
            if known is not None:
                base.add(round(sum(item.score for item in known.evaluation.tasks[TARGET].items)))
        yield (
            f"{study.name}/{target.name}: of {len(asked)} questions the base has {'/'.join(map(str, sorted(base)))} right, the "
            f"best constant answer {constant}, the {len(right)} fine-tuned models {min(right)} to {max(right)}"
        )


def main() -> None:
    """Print and record."""
    parser = script_parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with the items")
    parser.add_argument("studies", type=Path, nargs="+", help="a study's YAML file, then its folder; several times")
    parser.add_argument("--record", type=Path, help="where to write")
    given = parser.parse_args()
    pairs = zip(given.studies[::2], given.studies[1::2], strict=True)
    text = "".join(f"{line}\n" for file, out in pairs for line in lines_of(read_study(file), out, given.data))
    print(text, end="")
    if given.record is not None:
        given.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
