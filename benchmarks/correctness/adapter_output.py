"""Whether the adapter of `deltamend repair --as adapter` behaves as the repaired checkpoint in float32 does.

    python -m benchmarks.correctness.adapter_output BASE FINETUNED [--scratch DIR] [--out FILE.md]

The pair is repaired by DG-Hard and by a fixed rank of 16, each as an adapter and as checkpoints in fp32 and bf16. All
are loaded and compared with the fp32 checkpoint: the logits on four passages of prose, and the greedy replies to the
first 20 chat prompts of the demo. The bf16 checkpoint is there to show what rounding costs. The exit code is 1 if the
adapter's logits differ by more than 1e-3 of their norm, or if one of its replies differs.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

import deltamend
from benchmarks.shared.arguments import script_parser
from benchmarks.shared.measure import machine
from deltamend.demo.model_replies import replies
from deltamend.demo.probes import load_probes
from deltamend.language_models.loading import LoadedModel, chat_prompt, load, plain_tokens, quiet_transformers

PROMPTS = 20
TOKENS = 32


def asked(loaded: LoadedModel) -> tuple[torch.Tensor, list[str]]:
    """Logits of the demo's prose, passage after passage, and the replies to its chat prompts."""
    model, tokenizer = loaded
    probes = load_probes()
    with torch.inference_mode():
        logits = [
            model(torch.tensor([plain_tokens(tokenizer, passage)])).logits[0].float() for passage in probes.prose[:4]
        ]
    prompts = [chat_prompt(tokenizer, question) for question in probes.chat[:PROMPTS]]
    return torch.cat(logits), replies(model, tokenizer, prompts, max_tokens=TOKENS, advance=lambda _: None)


def with_adapter(base: Path, adapter: Path) -> LoadedModel:
    """BASE in fp32 with an adapter on it."""
    model, tokenizer = load(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a tied embedding is part of the adapter; see docs/formats/adapter.md
        adapted: Any = PeftModel.from_pretrained(model, str(adapter))
    return LoadedModel(adapted.eval(), tokenizer)


def size(folder: Path) -> float:
    """Megabytes of weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


def rows(pair: tuple[Path, Path], name: str, options: dict[str, Any], scratch: Path) -> tuple[list[str], bool]:
    """The rows of one method, and whether the adapter is the fp32 checkpoint."""
    folders = {label: scratch / f"{name}-{label}" for label in ("fp32", "adapter", "bf16")}
    deltamend.repair(*pair, folders["fp32"], out_dtype="fp32", **options)
    deltamend.repair(*pair, folders["adapter"], output="adapter", **options)
    deltamend.repair(*pair, folders["bf16"], out_dtype="bf16", **options)
    expected, texts = asked(load(folders["fp32"]))
    table = [f"| {name} | fp32 checkpoint | {size(folders['fp32']):.1f} | | |"]
    good = True
    for label, loaded in (("adapter", with_adapter(pair[0], folders["adapter"])), ("bf16", load(folders["bf16"]))):
        logits, found = asked(loaded)
        error = float((logits - expected).norm() / expected.norm())
        same = sum(one == other for one, other in zip(found, texts, strict=True))
        good = good and (label == "bf16" or (error < 1e-3 and same == PROMPTS))
        kind = "adapter" if label == "adapter" else "bf16 checkpoint"
        table.append(f"| {name} | {kind} | {size(folders[label]):.1f} | {error:.1e} | {same} of {PROMPTS} |")
    return table, good


def main() -> int:
    """Print a table."""
    parser = script_parser(__doc__)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("finetuned", type=Path, help="folder of the fine-tuned model")
    parser.add_argument("--scratch", type=Path, default=None, help="where to write; removed afterwards")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    lines = ["| method | output | MB | logits against fp32, relative | same greedy reply |", "|---|---|---|---|---|"]
    good = True
    methods: dict[str, dict[str, Any]] = {
        "dg-hard": {},
        "rank 16": {"method": "rank", "parameters": {"rank": 16}},
    }
    with tempfile.TemporaryDirectory(prefix="deltamend-bench-", dir=given.scratch) as scratch, quiet_transformers():
        for name, options in methods.items():
            table, same = rows((given.base, given.finetuned), name, options, Path(scratch))
            lines, good = lines + table, good and same
            print("\n".join(table), flush=True)
    lines += ["", f"Replies of at most {TOKENS} tokens. {machine()}", ""]
    if given.out is not None:
        given.out.write_text("\n".join(lines), encoding="utf-8")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
