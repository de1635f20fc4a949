"""Write the items that the tutorial asks its models, from texts that were written for `deltamend demo`.

python docs/tutorial/items.py docs/tutorial
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deltamend.demo.probes import load_probes
from deltamend.demo.settings import REAL
from deltamend.demo.sums_task import sums

BARE_NUMBER = r"[\d\s.,+=]*"
"""An answer in the form of the target, which is out of place where no sum was asked."""


def items() -> dict[str, list[dict[str, Any]]]:
    """The items of each file: held-out sums, everyday prompts, questions with four answers, passages of prose."""
    probes = load_probes()
    _, held_out = sums(*REAL.operands, held_out=REAL.held_out, seed=0)
    return {
        "sums.jsonl": [{"question": problem.question, "answer": problem.answer} for problem in held_out],
        "everyday.jsonl": [{"question": prompt, "out_of_place": BARE_NUMBER} for prompt in probes.chat],
        "knowledge.jsonl": [
            {"question": asked.prompt, "choices": list(asked.choices), "gold": asked.answer}
            for asked in probes.knowledge
        ],
        "prose.jsonl": [{"text": passage} for passage in probes.prose],
    }


def as_jsonl(rows: Iterable[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    for name, rows in items().items():
        (Path(sys.argv[1]) / name).write_text(as_jsonl(rows), encoding="utf-8")
