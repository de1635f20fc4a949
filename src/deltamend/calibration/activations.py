"""What every linear layer is given, over texts that the model writes itself or texts that are given: principal directions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamend.calibration.checks import check_file, refuse_not_finite
from deltamend.calibration.texts import as_examples, read_texts
from deltamend.errors import CheckpointError, UsageError
from deltamend.inputs.open_models import open_checkpoint
from deltamend.language_models.loading import (
    TODAY,
    LoadedModel,
    clockless_template,
    load,
    plain_tokens,
    quiet_transformers,
    transformers_module,
)
from deltamend.machine.atomic import whole_file
from deltamend.methods.null_space import EIGENVALUES, SAME_INPUT, VERSION
from deltamend.progress import Progress

if TYPE_CHECKING:
    import torch

_AT_ONCE = 8
"""Texts in one forward pass."""
_MARK = "\u2063message\u2063"
"""Stands for a message while the template around it is looked at."""
_DATE = TODAY.strftime("%d %b %Y")
"""For templates that are told the day, as Llama 3's: the same base, the same texts."""
_TOP_P = 0.95
_NOTHING = 1e-7
"""An eigenvalue below so much of the largest is float32's rounding."""
_TRANSPOSED = "Conv1D"
"""transformers' class of a linear layer whose weight is (in, out)."""


def write_activations(
    model: Path,
    out: Path,
    *,
    texts: Path | None = None,
    chat: bool = False,
    samples: int = 48,
    tokens: int = 96,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write the eigenvectors and eigenvalues of C = mean of xxᵀ/‖x‖² over every linear layer's inputs x, for `null-space`.

    Without `texts` the model writes them: it is given the beginning of a user's message, by its chat template or, without
    one, the beginning of a text, and goes on from there with its own message and its own answer (as in Magpie, arXiv
    2406.08464). The model is held in fp32 with C, which for usual shapes takes as much as the model again.

    Args:
        model: folder of the checkpoint, the base of a pair.
        out: safetensors file to write, float32: k ≤ n eigenvectors (k, n) under the name of each weight with n inputs,
            and its k eigenvalues beside it; those below 1e-7 of the largest are left out. Weights that are given the
            same input share one, named in the metadata.
        texts: JSONL file; see `CalibrationText`. None lets the model write.
        chat: whether prompts of the texts go through the chat template.
        samples: texts the model writes.
        tokens: of each text, at most.
        seed: of what the model writes.
        overwrite: whether a file that is there may be replaced.
        progress: called after each pass.

    Returns:
        The number of inputs, that is of tokens.

    Raises:
        UsageError: a text or an option means nothing.
        CheckpointError: the model cannot be loaded, holds or makes NaN or Inf, or stores linear layers transposed, as
            GPT-2, or under other names than transformers.
        OutputError: `out` exists, belongs to an input or cannot be written.
    """
    told = progress or (lambda _what, _share: None)
    check_file(out, [model], texts, overwrite=overwrite)
    read = None if texts is None else read_texts(texts)
    with quiet_transformers():
        loaded = load(model)
    if any(type(layer).__name__ == _TRANSPOSED for layer in loaded.model.modules()):
        raise CheckpointError(f"{model}: stores its weights transposed, as GPT-2; null-space does not read such models")
    refuse_not_finite(loaded.model.named_parameters(), f"{model}: the weights of")
    if read is None:
        told("writing texts", 0.0)
        try:
            sequences = own_texts(loaded, samples=samples, tokens=tokens, seed=seed)
        except RuntimeError as error:  # torch cannot sample from what overflowed
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{model}: cannot write texts ({reason}); give --texts") from error
    else:
        examples = as_examples(read, loaded.tokenizer, chat=chat, max_tokens=tokens)
        sequences = [[*example.prompt, *example.answer] for example in examples]
    moments, same, count = second_moments(loaded.model, sequences, told)
    del loaded
    if not moments:
        raise CheckpointError(f"{model}: has no linear layer; null-space has nothing to go by")
    refuse_not_finite(moments.items(), f"{model}: the inputs of")
    from safetensors.torch import save_file

    stored = stored_names([*moments, *same], model)
    same = {stored[name]: stored[other] for name, other in same.items()}
    directions = {}
    for name in list(moments):  # each C makes room for its eigenvectors
        directions[stored[name]], directions[f"{stored[name]}{EIGENVALUES}"] = principal_directions(moments.pop(name))
    with whole_file(out) as temporary:
        save_file(directions, temporary, metadata=described(same))
    return count


def stored_names(names: Sequence[str], folder: Path) -> dict[str, str]:
    """What the checkpoint calls weights that transformers holds under `names`: the same, or with another beginning.

    The language part of a multimodal model, loaded alone, has `model.layers…` for `model.language_model.layers…`.

    Raises:
        CheckpointError: the checkpoint has no such tensor, or several.
    """
    with open_checkpoint(folder) as checkpoint:
        known = list(checkpoint.tensors)
    found = {}
    for name in names:
        end = f".{name.partition('.')[2]}"
        alike = [name] if name in known else [tensor for tensor in known if tensor.endswith(end)]
        if len(alike) != 1:
            raise CheckpointError(
                f"{folder}: transformers holds a matrix {name!r} that the checkpoint does not; save it again with "
                "save_pretrained of the transformers that is installed"
            )
        found[name] = alike[0]
    return found


def described(same: dict[str, str]) -> dict[str, str]:
    """The metadata of such a file; `same` names the weight whose input each other weight shares."""
    return {"format": "pt", "activations": VERSION, SAME_INPUT: json.dumps(same, sort_keys=True)}


def principal_directions(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors (k, n) and eigenvalues (k,) of (n, n) float32, the largest first; what rounding made up is left out."""
    import torch

    values, vectors = (found.float() for found in torch.linalg.eigh(moment.double()))
    values, vectors = values.flip(0), vectors.flip(1).T
    real = int((values > _NOTHING * values[0].clamp(min=0)).sum())
    return vectors[:real].contiguous(), values[:real].contiguous()


def own_texts(loaded: LoadedModel, *, samples: int, tokens: int, seed: int) -> list[list[int]]:
    """Token ids of texts that the model writes from the beginning of a message on, each of the same length.

    Sampled at temperature 1 from the top 95% of the probability; an end of turn does not end a text. What the checkpoint's
    generation_config says does not count.

    Raises:
        UsageError: the tokenizer has neither a chat template nor a token to begin with.
    """
    import torch

    opening = opening_of_a_message(loaded.tokenizer)
    loaded.model.generation_config = transformers_module().GenerationConfig()
    ids = torch.tensor([opening] * samples)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        written = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=True,
            temperature=1.0,
            top_p=_TOP_P,
            top_k=0,
            eos_token_id=None,
            pad_token_id=loaded.tokenizer.pad_token_id,
        )
    return [list(map(int, text)) for text in written]


def opening_of_a_message(tokenizer: Any) -> list[int]:
    """What the chat template puts before a user's first message, or what a text begins with.

    Raises:
        UsageError: there is neither, or the template fails, or changes the message.
    """
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": _MARK}]
        try:
            template = clockless_template(tokenizer)
            text = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template, date_string=_DATE)
        except Exception as error:  # a template is a program, and may raise what it likes
            raise UsageError(f"the chat template fails ({' '.join(str(error).split())[:200]}); give --texts") from error
        before, found, _ = text.partition(_MARK)
        if not found:
            raise UsageError("the chat template does not show a user's message as it is; give --texts")
        opening = plain_tokens(tokenizer, before)
    else:
        opening = []
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not opening and first is None:
        raise UsageError("the tokenizer has neither a chat template nor a token that begins a text; give --texts")
    return opening or [first]


def second_moments(
    model: torch.nn.Module, sequences: Sequence[Sequence[int]], told: Callable[[str, float], None]
) -> tuple[dict[str, torch.Tensor], dict[str, str], int]:
    """Mean of xxᵀ/‖x‖² over all tokens, float32 by the weight's name; the weights that share another's; the tokens.

    Every token counts the same: what a text begins with may have inputs a hundred times as large as all others.

    The head is given what a tied embedding is too, and both go by the name of the embedding.
    """
    import torch

    by_length: dict[int, list[Sequence[int]]] = {}
    for sequence in sequences:
        by_length.setdefault(len(sequence), []).append(sequence)
    passes = [
        group[start : start + _AT_ONCE]
        for _, group in sorted(by_length.items())
        for start in range(0, len(group), _AT_ONCE)
    ]
    sums: dict[str, torch.Tensor] = {}
    same: dict[str, str] = {}
    with torch.inference_mode(), _watching(model, sums, same):
        for done, group in enumerate(passes, start=1):
            model(torch.tensor(group))
            told("reading activations", done / len(passes))
    count = sum(map(len, sequences))
    with torch.inference_mode():
        for total in sums.values():
            total.div_(count)
    return sums, same, count


@contextmanager
def _watching(model: torch.nn.Module, sums: dict[str, torch.Tensor], same: dict[str, str]) -> Iterator[None]:
    """Adds up xxᵀ/‖x‖² of what linear layers are given; of layers that are given one tensor, only the first one's."""
    import torch

    names = {id(parameter): name for name, parameter in model.named_parameters()}  # a tied weight has its first name
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    last: dict[str, Any] = {}

    def watch(layer: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        name = names[id(layer.weight)]
        if last.get("input") is given[0]:
            same[name] = last["name"]
            return
        last.update(input=given[0], name=name)
        inputs = given[0].reshape(-1, given[0].shape[-1]).float()
        directions = torch.nn.functional.normalize(inputs, dim=-1)
        square = directions.T @ directions
        sums[name] = sums[name] + square if name in sums else square

    handles = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        yield
    finally:
        last.clear()
        for handle in handles:
            handle.remove()
