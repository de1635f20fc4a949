"""How far the default of null-space leads other repairs in a recorded study, and what the lead hangs on.

    python -m benchmarks.study.lead studies/smollm2.yaml docs/results/smollm2 --record FILE
    python -m benchmarks.study.lead studies/fresh.yaml docs/results/fresh --with studies/smollm2.yaml docs/results/smollm2 --record FILE

The first wrote benchmarks/results/study/lead.txt, the second lead_fresh.txt beside it, which README's figures are
taken from.

All of it is over confirmation cells, on which nothing was chosen. It is told in float32 and in the fine-tuned model's
dtype, as `deltamend repair` writes it; by regime and by target; against WiSE-FT at the alpha that was best in the
choosing cells of a regime; with retention measured in the other way; without the cluster of cells in which the lead is
largest; and over the cells that ran after the default was set. Those have new seeds, which means new fine-tuned
models, while their targets, regimes and questions had all been seen. With another study, everything is then told over
the cells of both.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.shared.arguments import script_parser
from deltamend.study.config import read_study
from deltamend.study.findings.lead import score_study
from deltamend.study.findings.lead_text import LeadQuestion, lead_lines

QUESTION = LeadQuestion(
    ours="null-space-0.001",
    curve="wise-ft-0.5",
    paper="dg-hard",
    others=(
        "null-space",
        "null-space-half",
        "magnitude-0.15",
        "fapm",
        "ties",
        "dare",
        "intruder",
        "dg-hard",
        "dg-hard-bf16",
    ),
    alphas=("wise-ft-0.2", "wise-ft-0.35", "wise-ft-0.5", "wise-ft-0.65", "wise-ft-0.8"),
    alpha_too="wise-ft-0.65",
    published=("ties", "fapm"),
    seen_when="the default of null-space was set",
    later="null-space-half",
    later_over=("wise-ft-0.5", "dg-hard", "ties", "dare", "fapm", "intruder"),
    seen=frozenset(  # the confirmation cells of studies/smollm2.yaml that were scored at commit f658470
        [
            *(
                (target, regime, 0)
                for target in ("gsm8k", "pubmedqa")
                for regime in ("fp32", "bf16", "fp32-low", "bf16-low")
            ),
            *(("wikisql", regime, 1) for regime in ("fp32", "bf16", "fp32-low", "bf16-low")),
            *(("sums", regime, 1) for regime in ("fp32", "bf16")),
        ]
    ),
)


def main() -> None:
    """Compute, print and write."""
    parser = script_parser(__doc__)
    parser.add_argument("study", type=Path, help="the study's YAML file")
    parser.add_argument("out", type=Path, help="the study's folder")
    parser.add_argument("--draws", type=int, default=10_000, help="number of bootstrap resamples")
    parser.add_argument(
        "--with", dest="earlier", nargs=2, type=Path, help="file and folder of an earlier study, to pool with"
    )
    parser.add_argument("--record", type=Path, required=True, help="where to write")
    given = parser.parse_args()
    study = score_study(read_study(given.study), given.out, given.draws)
    earlier = score_study(read_study(given.earlier[0]), given.earlier[1], given.draws) if given.earlier else None
    text = "\n".join(lead_lines(QUESTION, study, earlier)) + "\n"
    print(text, end="")
    given.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
