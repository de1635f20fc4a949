from __future__ import annotations

import pytest

from deltamend.checkpoint.architecture import kind_of, layer_of


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
