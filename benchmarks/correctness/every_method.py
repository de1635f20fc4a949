"""Whether a real pair goes through every method, and whether every output loads and generates text.

    python -m benchmarks.correctness.every_method BASE FINETUNED [--methods a,b] [--scratch DIR] [--out FILE.md]

Each method is run twice, by command-line options and by a YAML file, and the two must write the same bytes. What some
methods need beyond the weights (the activations of the base, the Fisher information, graft's learned mask) is computed
first by `deltamend calibrate`, the last two on the demo's task, sums. The exit code is 1 if a method failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

import deltamend
from benchmarks.shared.arguments import script_parser
from benchmarks.shared.measure import DELTAMEND, machine
from deltamend.demo.sums_task import sums
from deltamend.methods.registry import all_methods

PROMPT = "The capital of France is"


def run_command(*arguments: object) -> float:
    """Run deltamend; seconds it took."""
    started = time.perf_counter()
    subprocess.run([*DELTAMEND, *(str(argument) for argument in arguments)], check=True, capture_output=True, text=True)
    return time.perf_counter() - started


def weights(folder: Path) -> dict[str, bytes]:
    """The weight files of a checkpoint."""
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def generated(folder: Path) -> str:
    """What the model makes of the prompt, 8 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs, min_new_tokens=8, max_new_tokens=8, do_sample=False, pad_token_id=0)
    text: str = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :])
    return text


def both_ways(row: str, pair: tuple[Path, Path], parameters: dict[str, Any], scratch: Path) -> tuple[str, ...]:
    """One row: the method, the first word of `row`, through the command line and through YAML."""
    name = row.split()[0]
    options = [text for key, value in parameters.items() for text in ("--set", f"{key}={value}")]
    by_options, by_yaml, config = scratch / "options", scratch / "yaml", scratch / "config.yaml"
    seconds = run_command("repair", *pair, by_options, "--method", name, *options, "--overwrite", "--quiet")
    folders = {"base_model": str(pair[0]), "models": [{"model": str(pair[1])}], "out": str(by_yaml)}
    config.write_text(yaml.safe_dump({"merge_method": name, "parameters": parameters, **folders}))
    run_command("repair", "--config", config, "--overwrite", "--quiet")
    if weights(by_options) != weights(by_yaml):
        raise AssertionError(f"{name}: YAML and command line give other bytes")
    if faults := deltamend.verify(by_yaml):
        raise AssertionError(f"{name}: {faults[0]}")
    manifest = deltamend.Manifest.model_validate_json((by_yaml / "deltamend.json").read_text())
    kept, lost = f"{100 * manifest.kept_energy:.2f} %", f"{100 * manifest.realised_error:.1f} %"
    return row, f"{seconds:.1f}", kept, lost, repr(generated(by_yaml))


def calibrated(pair: tuple[Path, Path], scratch: Path) -> dict[str, dict[str, Any]]:
    """The parameters of the methods that want to know more than the weights."""
    fisher, mask, texts = scratch / "fisher.safetensors", scratch / "mask.safetensors", scratch / "texts.jsonl"
    activations = scratch / "activations.safetensors"
    run_command("calibrate", "activations", pair[0], activations, "--quiet")
    problems = sums(10, 99, held_out=0, seed=0)[0][:64]
    lines = [json.dumps({"prompt": problem.question, "response": problem.answer}) for problem in problems]
    texts.write_text("\n".join(lines), encoding="utf-8")
    run_command("calibrate", "fisher", pair[1], texts, fisher, "--chat", "--quiet")
    run_command("calibrate", "graft", *pair, texts, mask, "--chat", "--quiet")
    return {
        "null-space": {"activations": str(activations)},
        "fisher": {"fisher": str(fisher)},
        "graft with a mask": {"mask": str(mask)},
    }


def main() -> None:
    """Print a table."""
    parser = script_parser(__doc__)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("finetuned", type=Path, help="folder of the fine-tuned model")
    parser.add_argument("--methods", help="names with commas between; default: all")
    parser.add_argument("--scratch", type=Path, default=None, help="where to write; removed afterwards")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names = given.methods.split(",") if given.methods else [*all_methods(), "graft with a mask"]
    lines = ["| method | s | energy kept | lost in cast | 8 tokens |", "|---|---|---|---|---|"]
    failed = []
    with tempfile.TemporaryDirectory(prefix="deltamend-bench-", dir=given.scratch) as scratch:
        parameters = calibrated((given.base, given.finetuned), Path(scratch))
        for name in names:
            try:
                row = both_ways(name, (given.base, given.finetuned), parameters.get(name, {}), Path(scratch))
            except (AssertionError, subprocess.CalledProcessError) as error:
                failed.append(name)
                row = (name, "", "", "", f"failed: {getattr(error, 'stderr', None) or error}")
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    lines += ["", f"Prompt: {PROMPT!r}. {machine()}"]
    print(lines[-1])
    if given.out is not None:
        given.out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
