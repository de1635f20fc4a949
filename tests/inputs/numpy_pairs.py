"""Pairs of checkpoints from arrays, for tests that need no model: they are written and repaired in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Array = np.ndarray[Any, np.dtype[np.float32]]
Tensors = dict[str, Array]


def body(random: np.random.Generator, *, layers: int = 2, prefix: str = "model.", width: int = 32) -> Tensors:
    """The matrices and norms of a small decoder, without an embedding."""
    tensors: Tensors = {}
    shapes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width // 2, width), "mlp.up_proj": (48, width)}
    for layer in range(layers):
        for name, shape in shapes.items():
            tensors[f"{prefix}layers.{layer}.{name}.weight"] = normal(random, shape)
        tensors[f"{prefix}layers.{layer}.input_layernorm.weight"] = np.ones(width, np.float32)
    return tensors


def normal(random: np.random.Generator, shape: tuple[int, ...], scale: float = 0.02) -> Array:
    found: Array = (scale * random.standard_normal(shape)).astype(np.float32)
    return found


def tuned(random: np.random.Generator, tensors: Mapping[str, Array], scale: float = 0.002) -> Tensors:
    """All tensors, with noise added."""
    return {name: tensor + normal(random, tensor.shape, scale) for name, tensor in tensors.items()}


def write(folder: Path, tensors: Mapping[str, Array], **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def read(folder: Path) -> Tensors:
    found: Tensors = load_file(folder / "model.safetensors")
    return found
