"""A language model as recipes see it: its loss and logits over token examples, its head, and its units."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from deltamend.calibration.activations import own_texts
from deltamend.language_models.loading import LoadedModel
from deltamend.language_models.training import PADDING, Example, collate
from deltamend.recipes.recipe import OWN_TEXTS, OWN_TOKENS, TrainingRun, Units

if TYPE_CHECKING:
    import torch

Kind = Literal["mlp", "attention"]
_READERS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "down_proj": ("mlp", ("up_proj", "gate_proj")),  # Llama, Qwen, Gemma and their kin
    "o_proj": ("attention", ("q_proj", "k_proj", "v_proj")),
    "fc2": ("mlp", ("fc1",)),  # OPT
    "out_proj": ("attention", ("q_proj", "k_proj", "v_proj")),
    "dense_4h_to_h": ("mlp", ("dense_h_to_4h",)),  # GPT-NeoX
}
"""The layer that reads what units put out, by its name: their kind, and the layers beside it that make them."""
_LAYER = re.compile(r"\.(\d+)\.")


def run_of_language_model(
    model: torch.nn.Module,
    old: Sequence[Sequence[Example]],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    autocast: bool,
    at_once: int | None = None,
) -> TrainingRun:
    """The training of a language model, as recipes take it.

    Args:
        model: a causal language model of transformers, or one with an adapter of PEFT.
        old: token examples of each old task.
        steps: see `TrainingRun`.
        batch: likewise.
        lr: likewise.
        seed: likewise.
        autocast: whether the training computes in bf16 autocast; the recipes then do so, too.
        at_once: see `TrainingRun`.
    """
    outputs = _outputs(autocast)

    def loss(own: Any, examples: Sequence[Example]) -> torch.Tensor:
        import torch

        labels = collate(examples)[1][:, 1:]
        logits = outputs(own, examples)
        return torch.nn.functional.cross_entropy(logits, labels[labels >= 0].to(logits.device))

    return TrainingRun(
        model=model,
        steps=steps,
        batch=batch,
        lr=lr,
        seed=seed,
        loss=loss,
        outputs=outputs,
        old=tuple(tuple(group) for group in old),
        head=_head(model),
        units=language_model_units(model),
        predictions=lambda examples: sum(len(example.answer) for example in examples),
        at_once=at_once,
    )


def _outputs(autocast: bool) -> Callable[[Any, Sequence[Example]], torch.Tensor]:
    def outputs(own: Any, examples: Sequence[Example]) -> torch.Tensor:
        import torch

        device = next(own.parameters()).device
        ids, labels = (one.to(device) for one in collate(examples))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            logits = own(input_ids=ids, attention_mask=(labels != PADDING).long(), use_cache=False).logits
        found: torch.Tensor = logits[:, :-1][labels[:, 1:] >= 0].float()
        return found

    return outputs


def _head(model: torch.nn.Module) -> tuple[str, ...]:
    """The parameters of the output layer, by the names that the model gives them: a tied one has that of the embedding."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    own = set() if head is None else {id(one) for one in head.parameters()}
    return tuple(name for name, one in model.named_parameters() if id(one) in own)


def language_model_units(model: torch.nn.Module) -> tuple[Units, ...]:
    """The hidden neurons and attention heads of every layer, where the layers have names of Llama, OPT or GPT-NeoX."""
    import torch

    modules = {name: one for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    config = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    found = []
    for name, reader in modules.items():
        above, _, last = name.rpartition(".")
        number = _LAYER.search(name)
        if last not in _READERS or number is None:
            continue
        kind, makers = _READERS[last]
        count = reader.in_features if kind == "mlp" else heads
        if not isinstance(count, int) or reader.in_features % count:
            continue
        weights = [(f"{name}.weight", 1)]
        for maker in (f"{above}.{one}" for one in makers):
            if maker in modules:
                weights.append((f"{maker}.weight", 0))
                if modules[maker].bias is not None:
                    weights.append((f"{maker}.bias", 0))
        found.append(Units(int(number[1]), kind, name, count, tuple(weights)))
    return tuple(found)


def own_examples(loaded: LoadedModel, seed: int) -> list[Example]:
    """Texts that the base writes itself, every token after the first to be predicted; they stand in for old examples.

    Raises:
        UsageError: the tokenizer gives no beginning of a text.
    """
    settings = loaded.model.generation_config
    try:
        written = own_texts(loaded, samples=OWN_TEXTS, tokens=OWN_TOKENS, seed=seed)
    finally:
        loaded.model.generation_config = settings
    return [Example(prompt=text[:1], answer=text[1:]) for text in written]
