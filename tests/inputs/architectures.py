"""Tiny models of many architectures, built from configs, as transformers saves them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

CONVERTS = importlib.util.find_spec("transformers.conversion_mapping") is not None
"""Whether transformers stacks experts on loading, as it does from version 5 on."""
VOCABULARY = 272
"""Rows of every embedding: enough for a tokenizer of bytes, and then some for images."""

_TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MOE = {**_TEXT, "num_local_experts": 3, "num_experts_per_tok": 2}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
_QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_heads": 2,
    "out_hidden_size": 48,
    "patch_size": 4,
    "spatial_merge_size": 2,
}
_MROPE = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
_VISION_TOKENS = {
    "image_token_id": 261,
    "video_token_id": 262,
    "vision_start_token_id": 263,
    "vision_end_token_id": 264,
}


def llama() -> PreTrainedModel:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_TEXT))


def gpt2() -> PreTrainedModel:
    config = hf.GPT2Config(
        n_embd=48, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return hf.GPT2LMHeadModel(config)


def granite_moe_hybrid() -> PreTrainedModel:
    config = hf.GraniteMoeHybridConfig(
        **_MOE,
        shared_intermediate_size=40,
        layer_types=["mamba", "attention"],
        mamba_n_heads=6,
        mamba_d_head=16,
        mamba_d_state=16,
        mamba_expand=2,
        mamba_n_groups=1,
    )
    return hf.GraniteMoeHybridForCausalLM(config)


def jetmoe() -> PreTrainedModel:
    return hf.JetMoeForCausalLM(hf.JetMoeConfig(**_MOE, kv_channels=12))


def gpt_oss() -> PreTrainedModel:
    return hf.GptOssForCausalLM(hf.GptOssConfig(**_MOE, head_dim=12))


def llama4() -> PreTrainedModel:
    return hf.Llama4ForCausalLM(hf.Llama4TextConfig(**_MOE, head_dim=12, intermediate_size_mlp=40))


def qwen3_moe() -> PreTrainedModel:
    config = hf.Qwen3MoeConfig(**_TEXT, head_dim=12, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=24)
    return hf.Qwen3MoeForCausalLM(config)


def deepseek_v3() -> PreTrainedModel:
    config = hf.DeepseekV3Config(
        **{**_TEXT, "num_key_value_heads": 4},
        moe_intermediate_size=24,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        n_shared_experts=1,
    )
    return hf.DeepseekV3ForCausalLM(config)


def mixtral() -> PreTrainedModel:
    return hf.MixtralForCausalLM(hf.MixtralConfig(**_MOE))


def recurrent_gemma() -> PreTrainedModel:
    config = hf.RecurrentGemmaConfig(**_TEXT, lru_width=48, head_dim=12, block_types=["recurrent", "attention"])
    return hf.RecurrentGemmaForCausalLM(config)


def mamba() -> PreTrainedModel:
    config = hf.MambaConfig(
        hidden_size=48, num_hidden_layers=2, state_size=8, vocab_size=VOCABULARY, time_step_rank=6, pad_token_id=0
    )
    return hf.MambaForCausalLM(config)


def zamba() -> PreTrainedModel:
    config = hf.ZambaConfig(
        **{**_TEXT, "num_key_value_heads": 4, "num_hidden_layers": 3},
        mamba_d_state=8,
        mamba_dt_rank=6,
        n_mamba_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        layers_block_type=["mamba", "hybrid", "hybrid"],
    )
    return hf.ZambaForCausalLM(config)


def dbrx() -> PreTrainedModel:
    experts = {"ffn_hidden_size": 40, "moe_num_experts": 3, "moe_top_k": 2}
    config = hf.DbrxConfig(
        d_model=48,
        n_heads=4,
        n_layers=1,
        max_seq_len=64,
        vocab_size=VOCABULARY,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        ffn_config=experts,
        pad_token_id=0,
    )
    config.ffn_config.hidden_size = 48
    return hf.DbrxForCausalLM(config)


def gemma3() -> PreTrainedModel:
    text = {**_TEXT, "head_dim": 12, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    tokens = {"image_token_index": 261, "boi_token_index": 262, "eoi_token_index": 263}
    config = hf.Gemma3Config(text_config=text, vision_config=_VISION, mm_tokens_per_image=4, **tokens)
    return hf.Gemma3ForConditionalGeneration(config)


def qwen2_5_vl() -> PreTrainedModel:
    config = hf.Qwen2_5_VLConfig(
        text_config={**_TEXT, "rope_parameters": _MROPE},
        vision_config={**_QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [0]},
        **_VISION_TOKENS,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> PreTrainedModel:
    config = hf.Qwen3VLConfig(
        text_config={**_TEXT, "head_dim": 12, "rope_parameters": _MROPE},
        vision_config={**_QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **_VISION_TOKENS,
    )
    return hf.Qwen3VLForConditionalGeneration(config)


def paligemma() -> PreTrainedModel:
    config = hf.PaliGemmaConfig(
        text_config={**_TEXT, "model_type": "gemma", "head_dim": 12},
        vision_config={**_VISION, "model_type": "siglip_vision_model", "projection_dim": 48},
        projection_dim=48,
        hidden_size=48,
        image_token_index=261,
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def llava() -> PreTrainedModel:
    config = hf.LlavaConfig(
        text_config={**_TEXT, "model_type": "llama"},
        vision_config={**_VISION, "model_type": "clip_vision_model", "projection_dim": 16},
        image_token_index=261,
    )
    return hf.LlavaForConditionalGeneration(config)


_OF_TEXT = (
    llama, gpt2, granite_moe_hybrid, jetmoe, gpt_oss, llama4, qwen3_moe, deepseek_v3, mixtral, recurrent_gemma, mamba, zamba, dbrx,
)  # fmt: skip
_OF_MORE = (gemma3, qwen2_5_vl, qwen3_vl, paligemma, llava)
TEXT: dict[str, Callable[[], PreTrainedModel]] = {made.__name__: made for made in _OF_TEXT}
"""Models of text."""
MULTIMODAL: dict[str, Callable[[], PreTrainedModel]] = {made.__name__: made for made in _OF_MORE}
"""Models of text and images."""


def build(name: str) -> PreTrainedModel:
    """The model of this name, in fp32, with the same random weights each time."""
    torch.manual_seed(0)
    try:
        return (TEXT | MULTIMODAL)[name]().float().eval()
    except AttributeError as error:
        if "has no attribute" not in str(error) or "module transformers" not in str(error):
            raise
        pytest.skip(f"transformers {hf.__version__} does not have {name}")
