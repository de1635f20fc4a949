"""The verdicts of saved diagnoses and the numbers they rest on, one line for each diagnosis.

    for update in fp32 bf16 shuffled adapter adapter-bf16; do
        deltamend diagnose BASE PAIRS/$update --quiet --json PAIRS/$update.json
    done
    python -m benchmarks.diagnosis.verdicts PAIRS/{fp32,bf16,shuffled,adapter,adapter-bf16}.json

PAIRS is the folder that `python -m benchmarks.diagnosis.known_updates` filled. The table is printed and written to
benchmarks/results/diagnosis/verdicts.md.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.paths import RESULTS
from deltamend.diagnosis.records import Diagnosis


def row(name: str, found: Diagnosis) -> str:
    """Verdicts, and the numbers they rest on."""
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in found.verdicts.most_common())
    ks = statistics.median(matrix.bulk.ks for matrix in found.matrices if matrix.bulk)
    zeros = statistics.median(matrix.entries.zeros for matrix in found.matrices if matrix.entries)
    energy = sum(matrix.norm**2 * matrix.spectrum.energy for matrix in found.matrices if matrix.spectrum)
    kept = energy / sum(matrix.norm**2 for matrix in found.matrices)
    losses = [matrix.rounding.lost for matrix in found.matrices if matrix.rounding and matrix.rounding.lost is not None]
    lost = f"{statistics.median(losses):.2%}" if losses else "nothing is kept"
    return f"| {name} | {verdicts} | {ks:.3f} | {zeros:.0%} | {kept:.1%} | {lost} |"


def main() -> None:
    """Write the table."""
    parser = script_parser(__doc__)
    parser.add_argument("diagnoses", nargs="+", type=Path, help="what `deltamend diagnose --json` wrote")
    files: list[Path] = parser.parse_args().diagnoses
    lines = [
        "| update | matrices by verdict | KS, median matrix | exactly 0, median matrix | ‖Δ‖² DG-Hard keeps | Δ* lost when written as stored, median matrix |",
        "|---|---|---|---|---|---|",
    ]
    lines += [row(file.stem, Diagnosis.model_validate_json(file.read_text(encoding="utf-8"))) for file in files]
    text = "# Five updates of one base\n\nWritten by `python -m benchmarks.diagnosis.verdicts`; benchmarks/diagnosis/known_updates.py makes the updates.\n\n"
    (RESULTS / "diagnosis" / "verdicts.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
