"""What is checked of a model's files before transformers gets them, and how much memory it may take to load them."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltamend.checkpoint.file_names import CONFIG_FILE
from deltamend.checkpoint.json_file import read_json
from deltamend.errors import CheckpointError
from deltamend.machine.bounded_files import UnreadableError, read_bytes

_LARGEST_COUNT = 4096
"""Of layers, experts and other modules that a config may ask for; building more would take hours."""
_COUNTS = re.compile(r"layers?$|layers_|depth|experts|blocks|heads|stages|codebooks|levels|labels")
_READ_BY_TRANSFORMERS = ("generation_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json",
                         "added_tokens.json", "chat_template.json", "vocab.json", "preprocessor_config.json",
                         "processor_config.json")  # fmt: skip
_TEXTS = ("chat_template.jinja", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")
_LARGEST_TEXT = 200_000_000
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_TIMES, _ALWAYS, _FOR_A_CORE = 16, 1 << 30, 32 << 20
"""Bytes of memory that loading may take: for each byte of the weights (4-bit weights grow eightfold in fp32, and are held twice
for a moment), in any case, and for each core, whose threads have stacks."""


def check_model_files(folder: Path) -> None:
    """Refuse files that transformers would stumble over, hang on, or take gigabytes for.

    Raises:
        CheckpointError: a JSON file is damaged, nests too deep, is too large or no regular file; or the config asks for
            more layers, experts or labels than a model has.
    """
    refuse_huge(read_json(folder / CONFIG_FILE))
    for name in _READ_BY_TRANSFORMERS:
        if os.path.lexists(folder / name):
            read_json(folder / name)
    for name in _TEXTS:
        if os.path.lexists(folder / name):
            try:
                read_bytes(folder / name, _LARGEST_TEXT)
            except UnreadableError as error:
                raise CheckpointError(f"{folder / name}: {error}; download it again") from error


def refuse_huge(config: Mapping[str, Any]) -> None:
    """Refuse a config that asks for more modules than any model has.

    Raises:
        CheckpointError: a number of layers, experts or labels is above 4,096.
    """
    for key, value in config.items():
        counts = value if isinstance(value, list) else [value]
        for inner in counts:
            if isinstance(inner, Mapping):
                refuse_huge(inner)
        if _COUNTS.search(str(key)) and any(isinstance(one, int | float) and one > _LARGEST_COUNT for one in counts):
            raise CheckpointError(f"config.json: {key} is {str(value)[:60]}, which no model has; download it again")


@contextmanager
def bounded_memory(folder: Path) -> Iterator[None]:
    """Within the block this process may take only as much more memory as loading the weights in a folder needs.

    What asks for more fails with a MemoryError or torch's own error. On a machine with a GPU, whose driver reserves memory
    as it likes, and elsewhere than on Linux there is no limit.
    """
    more = None if _has_gpu() else _needed(folder)
    used = _data_in_use() if more is not None else None
    if more is None or used is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [limit for limit in (soft, hard, used + more) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _needed(folder: Path) -> int:
    weights = sum(file.stat().st_size for file in folder.iterdir() if file.name.endswith(_WEIGHTS) and file.is_file())
    return _TIMES * weights + _ALWAYS + _FOR_A_CORE * (os.cpu_count() or 1)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or sys.platform != "linux"


def _data_in_use() -> int | None:
    """Bytes that count for the limit on data."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), None)
