"""A pair with the shapes of Llama-3.2-3B, 6.4 GB a side in bf16, generated and removed again.

    python benchmarks/large_pair.py [--layers 28] [--scratch DIR]

The baseline, `torch.linalg.svd` and reconstruction in fp32, is timed on one matrix of each shape and scaled up by how
often the shape occurs. Goal: 15 times less time, peak memory below 3 GiB.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from measure import DELTAMEND, apart, machine, run
from naive_repair import filter_matrix


@dataclass(frozen=True)
class ModelShape:
    """Llama-3.2-3B but for the number of layers; embeddings are tied."""

    layers: int = 28
    hidden: int = 3072
    intermediate: int = 8192
    key_value: int = 1024
    vocabulary: int = 128256

    def layer(self) -> dict[str, tuple[int, int]]:
        """Shapes of one layer's matrices."""
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.key_value, self.hidden),
            "self_attn.v_proj": (self.key_value, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Names and shapes of all matrices, by shard."""
        yield "model.embed_tokens", (self.vocabulary, self.hidden)
        for index in range(self.layers):
            for name, shape in self.layer().items():
                yield f"model.layers.{index}.{name}", shape


def update(shape: tuple[int, int], generator: torch.Generator, rank: int = 48) -> torch.Tensor:
    """A power-law signal of rank 48 over noise, of the size of a real update; fp32, shape (m, n)."""
    m, n = shape
    strength = torch.arange(1, rank + 1, dtype=torch.float32) ** -0.6
    left, right = torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator)
    signal = (left * strength) @ right
    return signal.mul_(2e-4).add_(torch.randn(shape, generator=generator), alpha=2e-4)


def write_checkpoint(folder: Path, shape: ModelShape, seed: int, base: Path | None = None) -> None:
    """Write a checkpoint in bf16, four layers a shard; with `base`, its weights and an update from `seed`."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.hidden, "num_hidden_layers": shape.layers,
        "intermediate_size": shape.intermediate, "vocab_size": shape.vocabulary, "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    matrices = list(shape.matrices())
    size = 4 * len(shape.layer())
    files = [matrices[:1], *(matrices[start : start + size] for start in range(1, len(matrices), size))]
    for number, group in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        before = {} if base is None else load_file(base / file)
        for name, size_ in group:
            weight = before.get(name + ".weight")
            value = (
                torch.randn(size_, generator=generator).mul_(0.02)
                if weight is None
                else weight.float().add_(update(size_, generator))
            )
            shard[name + ".weight"] = value.to(torch.bfloat16)
            weight_map[name + ".weight"] = file
        save_file(shard, folder / file, metadata={"format": "pt"})
        shard.clear()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def baseline_seconds(shape: ModelShape) -> tuple[float, list[str]]:
    """Seconds of the full SVD for the whole model on one core, from one matrix of each shape; and lines that say so."""
    counts = Counter(size for _, size in shape.matrices())
    generator = torch.Generator().manual_seed(2)
    total, lines = 0.0, []
    torch.set_num_threads(1)
    for size, count in counts.items():
        rows = min(size[0], 8 * size[1])  # the embedding is timed on its first rows: the SVD's time is linear in them
        delta = update((rows, size[1]), generator)
        started = time.perf_counter()
        filter_matrix(delta)
        seconds = (time.perf_counter() - started) * size[0] / rows
        total += count * seconds
        lines.append(f"| {size[0]}×{size[1]} | {count} | {seconds:.1f} |")
    return total, lines


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--scratch", type=Path, default=None, help="where to make the pair; removed afterwards")
    arguments = parser.parse_args()
    shape = ModelShape(layers=arguments.layers)
    with tempfile.TemporaryDirectory(prefix="deltamend-bench-", dir=arguments.scratch) as scratch:
        base, finetuned, out = (Path(scratch) / name for name in ("base", "finetuned", "out"))
        apart(write_checkpoint, base, shape, 0)
        apart(write_checkpoint, finetuned, shape, 1, base)
        gigabytes = sum(file.stat().st_size for file in finetuned.iterdir()) / 1e9
        usage = run((*DELTAMEND, "repair", "--quiet", base, finetuned, out))
        manifest = json.loads((out / "deltamend.json").read_text())
    found = [tensor["spectrum"] for tensor in manifest["tensors"] if tensor["spectrum"]]
    routes = Counter(spectrum["route"] for spectrum in found)
    ranks = sorted(spectrum["rank"] for spectrum in found)
    total, lines = apart(baseline_seconds, shape)
    print(f"{machine()}\n{arguments.layers} layers, {gigabytes:.1f} GB a side\n")
    print("| shape | matrices | full SVD and reconstruction, s each, one core |\n|---|---|---|")
    print("\n".join(lines))
    print(
        f"\n`deltamend repair`: {usage.wall:.0f} s wall, {usage.cpu:.0f} s processor, peak {usage.peak / 2**30:.2f} GiB (goal 3)"
    )
    print(f"routes {dict(routes)}, rank kept {ranks[0]} to {ranks[-1]}")
    print(
        f"full SVD, whole model: {total:.0f} s on one core, {total / usage.wall:.1f} times the wall time of the command (goal 15);"
    )
    print(f"half of that if two cores shared the matrices perfectly, {total / 2 / usage.wall:.1f} times")


if __name__ == "__main__":
    main()
