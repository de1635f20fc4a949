"""Checkpoints of any size with the shapes of a Llama model: random weights, and an update of a few directions over noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


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
