"""What is refused before transformers gets it, and how much memory loading may take."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from deltamend.errors import CheckpointError
from deltamend.language_models.model_limits import bounded_memory, check_model_files, refuse_huge

HUGE = 10**9
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "num_local_experts", "n_routed_experts",
          "num_labels", "num_attention_heads", "num_codebooks", "depths", "num_blocks")  # fmt: skip
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.mark.parametrize("key", COUNTS)
@pytest.mark.parametrize(
    "place", [lambda found: found, lambda found: {"text_config": found}, lambda found: {"x": [found]}]
)
@pytest.mark.parametrize("value", [HUGE, 10**30, 1e300, [2, HUGE]])
def test_more_modules_than_any_model_has_are_refused(key: str, place: Any, value: Any) -> None:
    with pytest.raises(CheckpointError, match=key):
        refuse_huge(place({key: value}))


def test_sizes_of_real_models_are_not_refused() -> None:
    refuse_huge({"num_hidden_layers": 126, "vocab_size": 262_208, "max_position_embeddings": 10_485_760, "rope_theta": 10**9,
                 "intermediate_size": 53_248, "n_routed_experts": 384, "layer_types": ["full_attention"] * 126, "eos_token_id": 128_009})  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"{", b"[" * 500 + b"]" * 500, b"\xff", b'{"a": ' + b"9" * 5000 + b"}", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).unlink(missing_ok=True)
    if content is None:
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        check_model_files(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the driver of a GPU reserves memory as it likes")
def test_loading_may_take_what_the_weights_need_and_the_limit_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "config.json").write_text(json.dumps({}))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with bounded_memory(tmp_path):
        torch.empty(10**7)
        with pytest.raises(RuntimeError):
            torch.empty(10**10)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with pytest.raises(ValueError, match="x"), bounded_memory(tmp_path):
        raise ValueError("x")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
