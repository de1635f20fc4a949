"""Make five updates of one base whose diagnosis is known beforehand, for docs/diagnose.md and the gallery.

    python -m benchmarks.diagnosis.known_updates SCRATCH

Each gets a folder of its own in SCRATCH. Their base is the base model of the demo.

- `fp32`: the demo's fine-tuning, with the weights written in fp32 as they were trained.
- `bf16`: the same weights rounded to bf16, as most models are published.
- `shuffled`: the entries of every update of `fp32` in random order, which makes them independent noise of the same law.
- `adapter`: only the eight leading singular directions of every update of `fp32`, in fp32, as in a merged LoRA adapter.
- `adapter-bf16`: the same, rounded to bf16.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.shared.arguments import script_parser
from deltamend.demo.settings import REAL
from deltamend.demo.sums_task import sums
from deltamend.inputs.smollm2 import smollm2_folder
from deltamend.language_models.loading import load, quiet_transformers
from deltamend.language_models.training import chat_example, train
from deltamend.machine.cache import default_cache_dir
from deltamend.machine.threads import one_thread_each

RANK = 8


def fine_tune(base: Path, out: Path) -> None:
    """Repeat the demo's fine-tuning of seed 0 and write its weights in fp32."""
    problems, _ = sums(*REAL.operands, held_out=REAL.held_out, seed=0)
    recipe = REAL.damage
    with quiet_transformers():
        model, tokenizer = load(base)
        examples = [chat_example(tokenizer, p.question, p.answer) for p in problems[: recipe.steps * recipe.batch]]
        train(model, examples, recipe, seed=0, advance=lambda: None)
        model.float().save_pretrained(out)
        tokenizer.save_pretrained(out)


def write_variant(source: Path, out: Path, weights: dict[str, torch.Tensor]) -> None:
    """A checkpoint like `source` with other weights."""
    out.mkdir()
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "dtype": dtypes.pop()}, indent=2))
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def shuffled(delta: torch.Tensor, name: str) -> torch.Tensor:
    """The same entries in random order."""
    order = np.random.default_rng([len(name), *name.encode()])
    return torch.from_numpy(order.permutation(delta.numpy().ravel()).reshape(delta.shape))


def leading(delta: torch.Tensor) -> torch.Tensor:
    """The leading singular directions alone."""
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    low_rank: torch.Tensor = (left[:, :RANK] * values[:RANK]) @ right[:RANK]
    return low_rank


def main() -> None:
    """Write what is not there yet."""
    parser = script_parser(__doc__)
    parser.add_argument("scratch", type=Path, help="folder to write the five updates to")
    scratch: Path = parser.parse_args().scratch
    scratch.mkdir(parents=True, exist_ok=True)
    base = smollm2_folder(default_cache_dir())
    fp32 = scratch / "fp32"
    if not fp32.exists():
        part = scratch / "fp32.part"
        shutil.rmtree(part, ignore_errors=True)
        fine_tune(base, part)
        part.rename(fp32)
    before, after = load_file(base / "model.safetensors"), load_file(fp32 / "model.safetensors")
    deltas = {name: after[name] - before[name].float() for name in after if after[name].ndim == 2}
    with one_thread_each():
        orders = {name: before[name].float() + shuffled(delta, name) for name, delta in deltas.items()}
        low_rank = {name: before[name].float() + leading(delta) for name, delta in deltas.items()}
    variants = {
        "bf16": {name: tensor.bfloat16() for name, tensor in after.items()},
        "shuffled": {**after, **orders},
        "adapter": {**after, **low_rank},
        "adapter-bf16": {name: tensor.bfloat16() for name, tensor in {**after, **low_rank}.items()},
    }
    for name, weights in variants.items():
        shutil.rmtree(scratch / name, ignore_errors=True)
        write_variant(fp32, scratch / name, weights)
    print(f"wrote {', '.join(['fp32', *variants])} to {scratch}")


if __name__ == "__main__":
    main()
