"""Tiny base and fine-tuned checkpoints whose bytes are the same on every machine, and the files some methods ask for.

`write_pairs` makes six pairs. Three are repaired with every method: `llama` (bf16, tied head, biases, several shards),
`mixtral` (fp16, experts stored one by one in the base and stacked in the fine-tuned model) and `gpt2` (fp32, Conv1D).
Three more show other ways in which inputs are read: `vocabulary` (a vocabulary that grew and was renumbered), `lora`
(`MODEL+ADAPTER`) and `fp8` (a fine-tuned model in 8-bit floating point with scales).

No tensor depends on the processor or its libraries: random numbers are sums of integers, everything else is additions,
products and quotients of single numbers (no matrix product, whose order of summation differs from machine to machine),
and the safetensors files are written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, Array]

_BF16, _F8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
_DTYPE_NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(np.uint8): "U8",
    _BF16: "BF16",
    _F8: "F8_E4M3",
}
_STRENGTHS = (5e-2, 5e-3, 8e-4, 4e-4, 2.5e-4)
"""Of the rank-one parts of every update: from far above the noise to below it, so that methods keep different ranks."""
_NOISE = 1e-3
"""Standard deviation of the noise in every update."""


@dataclass(frozen=True)
class Pair:
    """A pair in a folder of its own.

    Attributes:
        folder: holds all of it; commands run there, so that no output names a path.
        base: BASE, as `deltamend repair` takes it in that folder.
        finetuned: FINETUNED, likewise.
        files: the file that a parameter of a method names, by that parameter, such as "mask".
    """

    folder: Path
    base: str
    finetuned: str
    files: Mapping[str, str]


def write_pairs(folder: Path) -> dict[str, Pair]:
    """Write all six pairs below `folder`, which must be empty, and return them by their names."""
    return {
        "llama": _llama_pair(folder / "llama"),
        "mixtral": _mixtral_pair(folder / "mixtral"),
        "gpt2": _gpt2_pair(folder / "gpt2"),
        "vocabulary": _vocabulary_pair(folder / "vocabulary"),
        "lora": _lora_pair(folder / "lora"),
        "fp8": _fp8_pair(folder / "fp8"),
    }


def write_safetensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, byte for byte the same every time; the library writes metadata in a random order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    start = 0
    for name, tensor in tensors.items():
        stop = start + tensor.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Numbers of mean 0 and variance 1, nearly normal, float64: sums of twelve uniform ones (Irwin and Hall), exact."""
    return np.asarray(rng.integers(-(2**20), 2**20, (12, *shape)).sum(axis=0) / 2.0**21)


def _low_rank(rng: np.random.Generator, shape: tuple[int, int], strengths: Iterable[float]) -> Array:
    """Σ strength·u·vᵀ with random u and v, float64, added up entry by entry."""
    total = np.zeros(shape)
    for strength in strengths:
        total += strength * (_normal(rng, (shape[0], 1)) * _normal(rng, (1, shape[1])))
    return total


def _base(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any], seed: int) -> Tensors:
    """A base model: norms near 1, biases near 0, matrices of standard deviation 0.02."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        middle = 1.0 if "norm" in name or (".ln_" in name and name.endswith("weight")) else 0.0
        tensors[name] = (middle + 0.02 * _normal(rng, shape)).astype(np.float32).astype(dtype)
    return tensors


def _finetuned(base: Mapping[str, Array], seed: int, *, frozen: str = "", noisy: str = "") -> Tensors:
    """The base with noise added to every tensor and a signal of low rank to every matrix.

    The tensor `frozen` stays as it is, and the tensor `noisy` gets noise alone.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, tensor in base.items():
        update = _NOISE * _normal(rng, tensor.shape)
        if tensor.ndim == 2 and name != noisy:
            update += _low_rank(rng, (tensor.shape[0], tensor.shape[1]), _STRENGTHS)
        changed = tensor.astype(np.float64) + update
        tensors[name] = tensor if name == frozen else changed.astype(np.float32).astype(tensor.dtype)
    return tensors


def _save(folder: Path, tensors: Tensors, config: Mapping[str, Any], *, shards: int = 1) -> None:
    """A checkpoint folder of one or several weight files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        own = names[len(names) * number // shards : len(names) * (number + 1) // shards]
        write_safetensors(folder / file, {name: tensors[name] for name in own})
        weight_map |= dict.fromkeys(own, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _add_sidecars(folder: Path) -> None:
    """The files that people have beside the weights: a tokenizer, a chat template, code, a model card."""
    sidecars = {
        "tokenizer.json": '{"version": "1.0"}\n',
        "chat_template.jinja": "{{ messages }}\n",
        "modeling_tiny.py": "raise SystemExit('remote code must never run')\n",
        "README.md": "---\nlicense: mit\n---\n# My fine-tune\n",
        "training_args.json": "{}\n",
    }
    for name, text in sidecars.items():
        (folder / name).write_text(text, encoding="utf-8")


def _method_files(
    folder: Path, base: Tensors, finetuned: Tensors, seed: int, same: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Write what the methods fisher, graft and null-space read, in the formats of `deltamend calibrate`.

    Args:
        folder: of the pair.
        base: tensors of the base, by whose names activations go.
        finetuned: tensors of the fine-tuned model, by whose names squared gradients and masks go.
        seed: of the numbers.
        same: weights that are given the same input as another one, with the name of that one.

    Returns:
        The name of each file, by the parameter that takes it.
    """
    rng = np.random.default_rng(seed)
    matrices = {name: tensor.shape for name, tensor in finetuned.items() if tensor.ndim >= 2}
    for file in ("fisher", "base_fisher"):
        squares = {name: (_normal(rng, shape) ** 2).astype(np.float32) for name, shape in matrices.items()}
        write_safetensors(folder / f"{file}.safetensors", squares)
    masks = {name: (rng.integers(0, 10, shape) < 3).astype(np.uint8) for name, shape in matrices.items()}
    write_safetensors(folder / "mask.safetensors", masks)
    shared = dict(same or {})
    inputs: Tensors = {}
    for name, tensor in base.items():
        if tensor.ndim == 2 and name not in shared and ".experts." not in name:
            inputs[name], inputs[f"{name}.eigenvalues"] = _principal_directions(rng, tensor.shape[1])
    metadata = {"format": "pt", "activations": "4", "same_input": json.dumps(shared, sort_keys=True)}
    write_safetensors(folder / "activations.safetensors", inputs, metadata)
    return {name: f"{name}.safetensors" for name in ("fisher", "base_fisher", "mask", "activations")}


def _principal_directions(rng: np.random.Generator, width: int) -> tuple[Array, Array]:
    """Orthonormal rows (3/4·width, width), and falling eigenvalues of a covariance of trace below 1; both float32.

    The rows are those of a Householder reflection I − 2vvᵀ/vᵀv with whole numbers in v, so that no sum is rounded.
    """
    vector = rng.integers(1, 9, width) * rng.choice([-1, 1], width)
    reflection = np.eye(width) - 2.0 * (vector[:, None] * vector[None, :]) / int((vector * vector).sum())
    count = 3 * width // 4
    values = 0.6 / (1.0 + np.arange(count)) ** 2
    return reflection[:count].astype(np.float32), values.astype(np.float32)


def _llama_config(vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": True,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def _llama_shapes(vocabulary: int = 200) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, 64)}
    for layer in range(2):
        start = f"model.layers.{layer}"
        shapes[f"{start}.input_layernorm.weight"] = (64,)
        for part, height in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            shapes[f"{start}.self_attn.{part}_proj.weight"] = (height, 64)
            shapes[f"{start}.self_attn.{part}_proj.bias"] = (height,)
        shapes[f"{start}.post_attention_layernorm.weight"] = (64,)
        shapes[f"{start}.mlp.gate_proj.weight"] = shapes[f"{start}.mlp.up_proj.weight"] = (96, 64)
        shapes[f"{start}.mlp.down_proj.weight"] = (64, 96)
    return {**shapes, "model.norm.weight": (64,)}


def _llama_shared(layers: int = 2) -> dict[str, str]:
    """Weights of a Llama that are given the same input as another."""
    same = {}
    for start in (f"model.layers.{layer}" for layer in range(layers)):
        for part in ("k", "v"):
            same[f"{start}.self_attn.{part}_proj.weight"] = f"{start}.self_attn.q_proj.weight"
        same[f"{start}.mlp.up_proj.weight"] = f"{start}.mlp.gate_proj.weight"
    return same


def _llama_pair(folder: Path) -> Pair:
    """bf16, head tied to the embedding, biases; the base in one file, the fine-tuned model in three."""
    base = _base(_llama_shapes(), _BF16, seed=10)
    finetuned = _finetuned(
        base, seed=11, frozen="model.layers.1.mlp.up_proj.weight", noisy="model.layers.1.self_attn.o_proj.weight"
    )
    _save(folder / "base", base, _llama_config(200))
    _save(folder / "finetuned", finetuned, _llama_config(200), shards=3)
    _add_sidecars(folder / "finetuned")
    return Pair(folder, "base", "finetuned", _method_files(folder, base, finetuned, 12, _llama_shared()))


def _mixtral_pair(folder: Path) -> Pair:
    """fp16; the base has its experts one by one, the fine-tuned model stacked in one tensor."""
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 3,
        "vocab_size": 100,
        "tie_word_embeddings": False,
        "dtype": "float16",
    }
    layer, moe = "model.layers.0", "model.layers.0.block_sparse_moe"
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (100, 48),
        f"{layer}.input_layernorm.weight": (48,),
        **{f"{layer}.self_attn.{part}_proj.weight": (24 if part in "kv" else 48, 48) for part in "qkvo"},
        f"{layer}.post_attention_layernorm.weight": (48,),
        f"{moe}.gate.weight": (3, 48),
    }
    for expert in (f"{moe}.experts.{number}" for number in range(3)):
        shapes |= {f"{expert}.w1.weight": (80, 48), f"{expert}.w2.weight": (48, 80), f"{expert}.w3.weight": (80, 48)}
    shapes |= {"model.norm.weight": (48,), "lm_head.weight": (100, 48)}
    base = _base(shapes, np.dtype(np.float16), seed=20)
    tuned = _finetuned(base, seed=21, noisy=f"{moe}.experts.1.w2.weight")
    experts = {name: tuned.pop(name) for name in list(tuned) if ".experts." in name}
    finetuned = {name.replace("block_sparse_moe", "mlp"): tensor for name, tensor in tuned.items()}
    of = [[experts[f"{moe}.experts.{number}.w{part}.weight"] for part in (1, 2, 3)] for number in range(3)]
    finetuned[f"{layer}.mlp.experts.gate_up_proj"] = np.stack([np.concatenate([gate, up]) for gate, _, up in of])
    finetuned[f"{layer}.mlp.experts.down_proj"] = np.stack([down for _, down, _ in of])
    _save(folder / "base", base, config)
    _save(folder / "finetuned", finetuned, config)
    same = {f"{layer}.self_attn.{part}_proj.weight": f"{layer}.self_attn.q_proj.weight" for part in "kv"}
    return Pair(folder, "base", "finetuned", _method_files(folder, base, finetuned, 22, same))


def _gpt2_pair(folder: Path) -> Pair:
    """fp32, Conv1D layers, whose weights are stored transposed and hold q, k and v in one, and a tied head."""
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 120,
        "n_positions": 32,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (120, 48), "transformer.wpe.weight": (32, 48)}
    for start in (f"transformer.h.{layer}" for layer in range(2)):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{start}.{norm}.weight": (48,), f"{start}.{norm}.bias": (48,)}
        for module, shape in {
            "attn.c_attn": (48, 144),
            "attn.c_proj": (48, 48),
            "mlp.c_fc": (48, 192),
            "mlp.c_proj": (192, 48),
        }.items():
            shapes |= {f"{start}.{module}.weight": shape, f"{start}.{module}.bias": (shape[1],)}
    shapes |= {"transformer.ln_f.weight": (48,), "transformer.ln_f.bias": (48,)}
    base = _base(shapes, np.dtype(np.float32), seed=30)
    finetuned = _finetuned(base, seed=31, noisy="transformer.h.1.attn.c_proj.weight")
    _save(folder / "base", base, config, shards=2)
    _save(folder / "finetuned", finetuned, config)
    return Pair(folder, "base", "finetuned", _method_files(folder, base, finetuned, 32))


def _vocabulary_pair(folder: Path) -> Pair:
    """A Llama whose fine-tuned tokenizer has six more tokens and numbers the old ones differently."""
    base = _base(_llama_shapes(), _BF16, seed=40)
    finetuned = _finetuned(base, seed=41)
    rng = np.random.default_rng(42)
    order, new = rng.permutation(200), (17, 60, 90, 101, 150, 205)
    rows = [row for row in range(206) if row not in new]
    embedding = (0.02 * _normal(rng, (206, 64))).astype(np.float32).astype(_BF16)
    embedding[rows] = finetuned["model.embed_tokens.weight"][order]
    finetuned["model.embed_tokens.weight"] = embedding
    _save(folder / "base", base, _llama_config(200))
    _save(folder / "finetuned", finetuned, _llama_config(206))
    names = {row: f"t{number}" for row, number in zip(rows, order.tolist(), strict=True)}
    _add_tokenizer(folder / "base", [f"t{row}" for row in range(200)])
    _add_tokenizer(folder / "finetuned", [names.get(row, f"new{row}") for row in range(206)])
    return Pair(folder, "base", "finetuned", _method_files(folder, base, finetuned, 43, _llama_shared()))


def _add_tokenizer(folder: Path, tokens: list[str]) -> None:
    """The part of a tokenizer.json that numbers tokens; the second half as added tokens."""
    half = len(tokens) // 2
    content = {
        "model": {"vocab": {token: row for row, token in enumerate(tokens[:half])}},
        "added_tokens": [{"content": token, "id": row} for row, token in enumerate(tokens) if row >= half],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def _lora_pair(folder: Path) -> Pair:
    """A Llama and a LoRA adapter of rank 6 to it, two of whose directions are strong and four weak."""
    base = _base(_llama_shapes(), _BF16, seed=50)
    _save(folder / "base", base, _llama_config(200))
    rng = np.random.default_rng(51)
    factors: Tensors = {}
    scales = np.array([8.0, 4.0, 0.25, 0.25, 0.25, 0.25])
    modules = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    for module in (f"model.layers.{layer}.{name}" for layer in range(2) for name in modules):
        height, width = base[f"{module}.weight"].shape
        start = f"base_model.model.{module}"
        factors[f"{start}.lora_A.weight"] = (0.05 * _normal(rng, (6, width))).astype(np.float32)
        factors[f"{start}.lora_B.weight"] = (0.05 * scales * _normal(rng, (height, 6))).astype(np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": 6,
        "lora_alpha": 9,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_safetensors(folder / "adapter" / "adapter_model.safetensors", factors)
    return Pair(folder, "base", "base+adapter", {})


def _fp8_pair(folder: Path) -> Pair:
    """A Llama in bf16 and its fine-tuned model in fp8, with a scale for each block of 16 by 16 entries."""
    base = _base(_llama_shapes(), _BF16, seed=60)
    stored: Tensors = {}
    for name, tensor in _finetuned(base, seed=61).items():
        if not name.endswith("proj.weight"):
            stored[name] = tensor
            continue
        rows, columns = tensor.shape[0] // 16, tensor.shape[1] // 16
        scales = np.where((np.arange(rows)[:, None] + np.arange(columns)) % 2, 2.0**-7, 2.0**-8).astype(np.float32)
        each = np.repeat(np.repeat(scales, 16, axis=0), 16, axis=1)
        stored[name] = (tensor.astype(np.float32) / each).astype(_F8)
        stored[f"{name}_scale_inv"] = scales
    quantised = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}}
    _save(folder / "base", base, _llama_config(200))
    _save(folder / "finetuned", stored, {**_llama_config(200), **quantised})
    return Pair(folder, "base", "finetuned", {})
