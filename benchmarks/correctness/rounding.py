"""How much of a repair is left when it is written in bf16 or fp16, rounded to nearest or stochastically.

    python -m benchmarks.correctness.rounding BASE FINETUNED [--questions 160] [--scratch DIR] [--out FILE.md]

The pair is the demo's. From deltamend.json come three figures: the relative error of the written update against Δ*;
the share of Δ* that the written update R = cast(W*) − W_base holds along Δ* itself, ⟨R, Δ*⟩/‖Δ*‖²; and the share of
weights that did not move at all. The written models are then asked the demo's target, sums they were not trained on
(exact match, with a 95 % Wilson interval), and how likely they find ordinary text.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import deltamend
from benchmarks.shared.arguments import script_parser
from benchmarks.shared.measure import machine
from deltamend.demo.measurement import nats_per_token, share
from deltamend.demo.model_replies import replies
from deltamend.demo.probes import load_prose
from deltamend.demo.settings import REAL
from deltamend.demo.sums_task import Problem, is_exact, sums
from deltamend.language_models.loading import chat_prompt, load, plain_tokens, quiet_transformers

CASES: dict[str, dict[str, Any]] = {
    "fp32": {"out_dtype": "fp32"},
    "bf16, nearest": {"out_dtype": "bf16"},
    "bf16, stochastic": {"out_dtype": "bf16", "rounding": "stochastic"},
    "fp16, nearest": {"out_dtype": "fp16"},
    "fp16, stochastic": {"out_dtype": "fp16", "rounding": "stochastic"},
}


def measured(folder: Path, problems: list[Problem]) -> tuple[str, str]:
    """Target accuracy with its interval, and nats a token."""
    model, tokenizer = load(folder)
    prompts = [chat_prompt(tokenizer, problem.question) for problem in problems]
    longest = 5 + max(len(plain_tokens(tokenizer, problem.answer)) for problem in problems)
    answers = replies(model, tokenizer, prompts, max_tokens=longest, advance=lambda _: None)
    target = share([is_exact(answer, problem) for answer, problem in zip(answers, problems, strict=True)])
    nats = nats_per_token(model, tokenizer, load_prose())
    return f"{target.value:.3f} ({target.low:.3f}–{target.high:.3f})", f"{nats.value:.4f}"


def share_along(report: deltamend.RepairReport) -> float:
    """⟨R, Δ*⟩/‖Δ*‖² over all matrices, from ‖R‖, ‖Δ*‖ and ‖R − Δ*‖."""
    kept = sum((tensor.kept_norm or 0.0) ** 2 for tensor in report.tensors)
    realised = sum((tensor.realised_norm or 0.0) ** 2 for tensor in report.tensors)
    return (realised + kept * (1.0 - report.realised_error**2)) / (2.0 * kept)


def main() -> None:
    """Print a table."""
    parser = script_parser(__doc__)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("finetuned", type=Path, help="folder of the fine-tuned model")
    parser.add_argument("--questions", type=int, default=REAL.held_out, help="number of sums that are asked")
    parser.add_argument("--scratch", type=Path, default=None, help="where to write; removed afterwards")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    _, problems = sums(*REAL.operands, held_out=REAL.held_out, seed=0)
    lines = [
        "| DG-Hard, written as | lost in the cast | there along Δ* | weights unmoved | target | nats a token |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(prefix="deltamend-bench-", dir=given.scratch) as scratch, quiet_transformers():
        rows = {"base": given.base, "fine-tuned": given.finetuned} | {name: Path(scratch) / name for name in CASES}
        for name, folder in rows.items():
            lost, along, unmoved = "", "", ""
            if name in CASES:
                report = deltamend.repair(given.base, given.finetuned, folder, **CASES[name])
                moved = [tensor for tensor in report.tensors if tensor.outcome == "filtered"]
                entries = [tensor.shape[0] * tensor.shape[1] for tensor in moved]
                still = sum((tensor.unmoved or 0.0) * count for tensor, count in zip(moved, entries, strict=True))
                lost, along = f"{100 * report.realised_error:.1f} %", f"{100 * share_along(report):.1f} %"
                unmoved = f"{100 * still / sum(entries):.1f} %"
            lines.append(
                f"| {' | '.join([name, lost, along, unmoved, *measured(folder, problems[: given.questions])])} |"
            )
            print(lines[-1], flush=True)
    lines += ["", f"{given.questions} sums; models run in fp32. {machine()}", ""]
    if given.out is not None:
        given.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
