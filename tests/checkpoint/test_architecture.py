from __future__ import annotations

import pytest

from deltamend.checkpoint.architecture import has_conv1d, kind_of, layer_of, model_type_of, tied_head


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("model.embed_tokens.weight", "embedding", None),
        ("model.layers.12.self_attn.q_proj.weight", "attention", 12),
        ("model.layers.3.self_attn.q_norm.weight", "norm", 3),
        ("model.layers.3.mlp.gate_proj.weight", "mlp", 3),
        ("model.layers.3.post_attention_layernorm.weight", "norm", 3),
        ("model.layers.3.block_sparse_moe.experts.7.w1.weight", "mlp", 3),
        ("lm_head.weight", "head", None),
        ("transformer.h.0.attn.c_attn.weight", "attention", 0),
        ("transformer.h.1.ln_1.weight", "norm", 1),
        ("transformer.wpe.weight", "embedding", None),
        ("gpt_neox.layers.4.attention.query_key_value.weight", "attention", 4),
        ("something.else", "other", None),
    ],
)
def test_kind_and_layer_are_read_from_the_name(name: str, kind: str, layer: int | None) -> None:
    assert (kind_of(name), layer_of(name)) == (kind, layer)


HEADS = {
    "model.embed_tokens.weight": "lm_head",
    "transformer.wte.weight": "lm_head",
    "model.language_model.embed_tokens.weight": "lm_head",
    "language_model.model.embed_tokens.weight": "language_model.lm_head",
    "thinker.model.embed_tokens.weight": "thinker.lm_head",
    "model.decoder.embed_tokens.weight": "lm_head",
}


@pytest.mark.parametrize("embedding", HEADS)
def test_a_tied_head_stands_beside_the_body_of_its_embedding(embedding: str) -> None:
    config = {"architectures": ["AnyForConditionalGeneration"]}
    assert tied_head(config, [embedding]) == (embedding, HEADS[embedding])
    assert tied_head(config, [embedding, f"{HEADS[embedding]}.weight"]) is None


@pytest.mark.parametrize("damaged", [[], [1, 1], {}, None, 3, True])
def test_a_model_type_that_is_no_text_is_none(damaged: object) -> None:
    config = {"model_type": damaged, "architectures": ["AnyForCausalLM"]}
    assert model_type_of(config) == ""
    assert not has_conv1d(config)
    assert tied_head(config, ["model.embed_tokens.weight"]) == ("model.embed_tokens.weight", "lm_head")
