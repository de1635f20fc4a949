"""The names of the files that a checkpoint, an adapter and a repaired model consist of."""

from __future__ import annotations

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_SUFFIX = ".bin"
TORCH_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"
CONFIG_FILE = "config.json"

ADAPTER_FILE = "adapter_model.safetensors"
TORCH_ADAPTER_FILE = "adapter_model.bin"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, TORCH_ADAPTER_FILE)

MANIFEST_FILE = "deltamend.json"
"""What deltamend writes about a repair; see `manifest`."""
CARD_FILE = "README.md"
FINETUNED_CARD_FILE = "README.finetuned.md"
"""What the model card of FINETUNED is called in the output, which has a card of its own."""
