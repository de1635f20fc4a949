"""What the names of the tensors and config.json tell about the modules of a model, without loading it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

Kind = Literal["attention", "mlp", "embedding", "head", "norm", "other"]

TOKEN_EMBEDDINGS = frozenset({"embed_tokens", "wte", "embed_in", "word_embeddings", "embeddings"})
"""Last parts of the names of token embeddings in transformers' decoder models."""

INPUT_EMBEDDING = re.compile(rf"(^|\.)({'|'.join(sorted(TOKEN_EMBEDDINGS))})\.weight$")
"""Names of the weight of a token embedding."""
OUTPUT_EMBEDDING = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
"""Names of the weight of a head."""

# The names that Hugging Face's models give their modules; the first that is found decides.
_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("norm", re.compile(r"norm|\bln_|(^|\.)ln\d?\.", re.IGNORECASE)),
    ("head", re.compile(r"(^|\.)(lm_head|embed_out|score|classifier)\.")),
    ("embedding", re.compile(r"embed|(^|\.)(wte|wpe)\.")),
    ("attention", re.compile(r"attn|attention|(^|\.)[qkvo]_proj\.", re.IGNORECASE)),
    ("mlp", re.compile(r"mlp|feed_forward|ffn|experts|(^|\.)(fc\d|fc_in|fc_out|(gate|up|down)_proj)\.", re.IGNORECASE)),
)
_LAYER = re.compile(r"(?:^|\.)(\d{1,9})\.")
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_MODULES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
_EXPERTS = re.compile(r"(^|\.)experts?(\.|$)")
_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def module_of(name: str) -> str:
    """The module a parameter belongs to."""
    return name.rpartition(".")[0]


def leaf_of(name: str) -> str:
    """The last part of a name."""
    return name.rpartition(".")[2]


def architecture_of(config: Mapping[str, Any]) -> str:
    """The first of the config's `architectures`, or "" where it names none."""
    found = config.get("architectures")
    return str(found[0]) if isinstance(found, list) and found else ""


def model_type_of(config: Mapping[str, Any]) -> str:
    """The config's `model_type`, or "" where it has none or one that is no text, as in a damaged file."""
    found = config.get("model_type")
    return found if isinstance(found, str) else ""


def has_head(config: Mapping[str, Any]) -> bool:
    """Whether the model predicts tokens."""
    return architecture_of(config).endswith(_WITH_HEAD)


def has_conv1d(config: Mapping[str, Any]) -> bool:
    """Whether some of the model's weights are stored as (inputs, outputs)."""
    return model_type_of(config) in _CONV1D_MODELS


def is_conv1d(config: Mapping[str, Any], leaf: str) -> bool:
    """Whether the weight of a module of this last name is stored as (inputs, outputs)."""
    return has_conv1d(config) and leaf in _CONV1D_MODULES


def is_expert(name: str) -> bool:
    """Whether a tensor belongs to the experts of a mixture of experts, to one of them or to all."""
    return _EXPERTS.search(name) is not None


def tied_head(config: Mapping[str, Any], names: Collection[str]) -> tuple[str, str] | None:
    """The name of the embedding whose matrix the head shares, and the module of the head; None where no head is tied.

    A shared matrix is stored once. So a model that predicts tokens and has no head in its files is tied, whatever its config
    says or leaves to a default.
    """
    embedding = next((name for name in names if leaf_of(module_of(name)) in TOKEN_EMBEDDINGS), None)
    if embedding is None or not has_head(config) or any(map(OUTPUT_EMBEDDING.search, names)):
        return None
    head = "embed_out" if model_type_of(config) == "gpt_neox" else "lm_head"
    # The head stands beside the body, which has the name `model` in it where both belong to a part of a larger model.
    body = module_of(module_of(embedding))
    return embedding, f"{module_of(body)}.{head}" if leaf_of(body) == "model" and module_of(body) else head


def kind_of(name: str) -> Kind:
    """What kind of module a tensor belongs to, by its name."""
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), "other")


def layer_of(name: str) -> int | None:
    """The layer a tensor belongs to: the first whole number in its name."""
    found = _LAYER.search(name)
    return None if found is None else int(found.group(1))
