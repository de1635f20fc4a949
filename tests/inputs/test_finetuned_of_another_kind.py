"""A fine-tuned model may be of another class than its base, or a part of it: the tensors decide and config.json is a hint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import deltamend
from tests.inputs.numpy_pairs import Tensors, body, normal, read, tuned, write

CONFIG = {"model_type": "qwen3", "vocab_size": 100, "hidden_size": 32}


class Kind(NamedTuple):
    """How the base and its fine-tuned descendant are stored, where they are not alike."""

    finetuned: dict[str, Any]  # its config
    base: dict[str, Any]
    prefixes: tuple[str, str] = ("", "")  # put before the names of the base, taken from those of the fine-tuned model
    heads: tuple[str, ...] = ("lm_head.weight",)  # of the fine-tuned model
    rename: str | None = None


CAUSAL = CONFIG | {"architectures": ["Qwen3ForCausalLM"]}
KINDS = {
    "an embedding model": Kind(CONFIG | {"architectures": ["Qwen3Model"]}, CAUSAL, ("", "model."), ()),
    "a reward model": Kind(
        CONFIG | {"architectures": ["Qwen3ForSequenceClassification"]}, CAUSAL, heads=("score.weight",)
    ),
    "a classifier of tokens": Kind(
        CONFIG | {"architectures": ["Qwen3ForTokenClassification"]},
        CAUSAL,
        heads=("classifier.weight", "classifier.bias"),
    ),
    "a model with the wrapper's class": Kind(CONFIG | {"architectures": ["FSDPQwen3ForCausalLM"]}, CAUSAL),
    "a part of a larger model, saved alone": Kind(
        {"model_type": "qwen2_5_omni_thinker", "architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"]},
        {"model_type": "qwen2_5_omni", "architectures": ["Qwen2_5OmniModel"]},
        ("thinker.", ""),
    ),
    "a part of a larger model, with --rename": Kind(
        {"model_type": "qwen2_5_omni_thinker", "architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"]},
        {"model_type": "qwen2_5_omni", "architectures": ["Qwen2_5OmniModel"]},
        ("thinker.", ""),
        rename="thinker.=",
    ),
    "a merged model whose config still says 4 bits": Kind(
        CAUSAL | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, CAUSAL
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_repaired_where_it_has_the_tensors_of_the_base(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind]
    before, taken = made.prefixes
    random = np.random.default_rng(0)
    base: Tensors = body(random) | {
        "model.embed_tokens.weight": normal(random, (100, 32)),
        "lm_head.weight": normal(random, (100, 32)),
    }
    shared = {name for name in base if name != "lm_head.weight" or name in made.heads}
    finetuned = {name: tensor for name, tensor in tuned(random, base).items() if name in shared}
    heads = {
        name: normal(random, (1, 32) if name.endswith("weight") else (1,)) for name in made.heads if name not in base
    }
    folders = (
        write(tmp_path / "base", {before + name: tensor for name, tensor in base.items()}, **made.base),
        write(
            tmp_path / "finetuned",
            {name.removeprefix(taken): tensor for name, tensor in (finetuned | heads).items()},
            **made.finetuned,
        ),
    )
    options: dict[str, Any] = {} if made.rename is None else {"rename": made.rename}
    report = deltamend.repair(*folders, tmp_path / "half", method="wise-ft", parameters={"alpha": 0.5}, **options)
    deltamend.repair(*folders, tmp_path / "reverted", method="revert", **options)
    half, reverted, stored = (read(tmp_path / name) for name in ("half", "reverted", "finetuned"))
    assert half.keys() == reverted.keys() == stored.keys() == {one.name for one in report.tensors}
    for name in finetuned:
        out = name.removeprefix(taken)
        if base[name].ndim == 2:
            assert np.array_equal(reverted[out], base[name])
            np.testing.assert_allclose(half[out], (base[name] + finetuned[name]) / 2, rtol=1e-5, atol=1e-8)
        else:
            assert np.array_equal(half[out], finetuned[name])
    for name, head in heads.items():
        assert np.array_equal(half[name], head)
        assert np.array_equal(reverted[name], head)
