"""What a config may ask of transformers, and what it may not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from deltamend.language_models.loading import transformers_module, without_kernels

FROM_ELSEWHERE = ("somebody/kernel", "somebody/kernel@main:attention", "kernels-community/flash-attn", "flash_attention_2",
                  "paged|somebody/kernel", "flex_attention", "deepgemm", "", 3, ["sdpa"])  # fmt: skip
PLACES = ("_attn_implementation", "attn_implementation", "experts_implementation", "_experts_implementation")


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for inner in vars(config).values():
        if isinstance(inner, transformers_module().PretrainedConfig):
            yield from _configs(inner)


@pytest.mark.parametrize("model_type", ["llama", "gemma3", "qwen2_vl", "llava", "mixtral"])
@pytest.mark.parametrize("place", PLACES)
def test_a_config_names_no_code_from_elsewhere(model_type: str, place: str) -> None:
    made = transformers_module().AutoConfig.for_model(model_type)
    for named in FROM_ELSEWHERE:
        for config in _configs(made):
            try:
                setattr(config, place, named)
            except Exception:  # noqa: S112 - transformers itself refuses it
                continue
        asked = {
            getattr(config, key)
            for config in _configs(without_kernels(made))
            for key in ("_attn_implementation", "_experts_implementation")
        }
        assert asked == {None}


def test_what_is_torchs_own_may_be_chosen() -> None:
    made = transformers_module().AutoConfig.for_model("gemma3", attn_implementation="eager")
    assert {config._attn_implementation for config in _configs(without_kernels(made))} == {"eager"}
