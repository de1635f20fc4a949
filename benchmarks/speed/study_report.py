"""How long the results of a full-size study take, and how large its records are: made-up scores, real formats.

    python -m benchmarks.speed.study_report [--seeds 3] [--draws 2000] [--out FILE]

48 cells (four targets, four regimes, three seeds) of 25 models, about 350 items each, with float32 log-likelihoods as
lm-eval gives them. Wall-clock and CPU seconds of one process with one BLAS thread, and the bytes of the packed
records.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from threadpoolctl import threadpool_limits

from benchmarks.shared.arguments import script_parser
from benchmarks.shared.measure import machine
from deltamend.report.study_page import write_results
from deltamend.study.config import Study
from deltamend.study.findings.results import study_results
from tests.study.made_up import made_up_study, write_made_up

ITEMS = {
    "target": 80,
    "target_likelihood": 80,
    "own_answers": 32,
    "form": 32,
    "arc": 50,
    "mmlu": 60,
    "piqa": 40,
    "xstest_safe": 40,
    "xstest_unsafe": 40,
}


def full_size(seeds: int) -> Study:
    """A study of the size of studies/smollm2.yaml."""
    small = made_up_study()
    more = 25 - 1 - len(small.repairs) + 1  # the fine-tuned model is one; one repair is for the choosing cells only
    extra = [
        {"name": f"other-{index}", "method": "magnitude", "parameters": {"density": 0.02 + 0.01 * index}, "role": role}
        for index, role in enumerate(["candidate", "published", "strength", "control"] * 7)
    ][:more]
    return made_up_study(
        targets=[
            {"name": name, "train": {"sums": [10, 99]}, "test": {"sums": [10, 99]}}
            for name in ("sums", "quiz", "sql", "maths")
        ],
        regimes=[
            {"name": name, "weights": weights, "lr": lr, "steps": 10}
            for name, weights, lr in (
                ("fp32-low", "float32", 2e-5),
                ("fp32-high", "float32", 1e-4),
                ("bf16-low", "bfloat16", 2e-5),
                ("bf16", "bfloat16", 5e-5),
            )
        ],
        seeds=list(range(seeds)),
        repairs=[
            *(
                repair.model_dump(mode="json") | {"regimes": ["bf16-low", "bf16"] if repair.regimes else []}
                for repair in small.repairs
            ),
            *extra,
        ],
        choosing={"targets": ["sums", "quiz"], "seeds": [0]},
    )


def main() -> None:
    """Make the records, score them, write the pages, and print the figures."""
    parser = script_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds in each cell of the grid")
    parser.add_argument("--draws", type=int, default=2000, help="number of bootstrap resamples")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    study = full_size(given.seeds)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        records = Path(folder) / "records"
        write_made_up(study, records, items=ITEMS)
        packed = sum(path.stat().st_size for path in records.rglob("*.xz"))
        lines = []
        for what in ("results", "pages"):
            wall, cpu = time.perf_counter(), time.process_time()
            if what == "results":
                results = study_results(study, records, draws=given.draws)
            else:
                write_results(results, Path(folder) / "pages")
            lines.append(f"| {what} | {time.perf_counter() - wall:.1f} | {time.process_time() - cpu:.1f} |")
        written = sum(path.stat().st_size for path in (Path(folder) / "pages").rglob("*") if path.is_file())
    models = len(study.repairs) + 1
    text = "\n".join(
        [
            f"# A study of {len(study.cells())} cells, {models} models, {sum(ITEMS.values())} items, {given.draws} draws",
            "",
            machine(),
            "",
            "| step | wall, s | CPU, s |",
            "|---|---:|---:|",
            *lines,
            "",
            f"Records: {packed / 1e6:.1f} MB packed. Pages, tables, plots and results.json: {written / 1e6:.1f} MB.",
            "",
        ]
    )
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
