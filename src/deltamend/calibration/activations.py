"""Compute the principal directions of every linear layer's inputs over texts, for the method `null-space`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamend.calibration.checks import refuse_not_finite
from deltamend.calibration.names_in_files import stored_names
from deltamend.calibration.second_moments import InputMoment, input_moments
from deltamend.calibration.tensor_files import write_tensors
from deltamend.calibration.texts import as_examples, read_texts
from deltamend.calibration.top_p import keep_likeliest
from deltamend.checkpoint.output_checks import check_output_file
from deltamend.errors import CheckpointError, DeltamendError, UsageError, option
from deltamend.language_models.loading import (
    TODAY,
    LoadedModel,
    clockless_template,
    load,
    plain_tokens,
    quiet_transformers,
    run_errors,
    transformers_module,
)
from deltamend.machine.templates import limited_templates
from deltamend.machine.threads import Workers
from deltamend.methods.input_moments import CONTENT, EIGENVALUES, SAME_INPUT, VERSION, content_digest
from deltamend.progress import Progress, ignore_progress

if TYPE_CHECKING:
    import torch

_MARK = "\u2063message\u2063"
"""A message that no one writes, put through the chat template to find out what comes before a message."""
_DATE = TODAY.strftime("%d %b %Y")
"""Told to chat templates that ask for the date, such as Llama 3's, so that the same base always writes the same texts."""
_TOP_P = 0.95
_OTHER_INPUT = re.compile(r"(image|video|audio|vision|boi|eoi|boa|eoa)\w*_token_(id|index)$")
"""Keys of config.json."""
_TRANSPOSED = "Conv1D"
"""The class of transformers for a linear layer whose weight has the shape (in, out)."""


def write_activations(
    model: Path,
    out: Path,
    *,
    texts: Path | None = None,
    chat: bool | None = False,
    samples: int = 48,
    tokens: int = 96,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write, for every linear layer, the eigenvectors and eigenvalues of C, the mean of xxᵀ/‖x‖² over the layer's inputs x.

    Without `texts` the model writes the texts itself: it is given the beginning of a user's message in its chat template,
    or the beginning of a text where it has no template, and continues with its own message and its own answer (as in
    Magpie, arXiv 2406.08464). The model and C are in memory in fp32; for usual shapes, C takes as much as the model, and
    less where there are fewer tokens than a layer has inputs.

    Args:
        model: folder of the checkpoint, the base of a pair.
        out: safetensors file to write, float32. For each weight with n inputs it holds k ≤ n eigenvectors, (k, n), under the
            name of the weight, and their k eigenvalues; eigenvalues below 1e-7 of the largest are left out. Weights that
            share an input are stored once; the metadata names the others.
        texts: JSONL file; see `CalibrationText`. None lets the model write its own.
        chat: whether prompts of the texts go through the chat template; None to do so where the model has one.
        samples: how many texts the model writes.
        tokens: largest number of tokens in a text.
        seed: for the texts that the model writes.
        overwrite: whether a file that is there may be replaced.
        progress: called after each pass.

    Returns:
        The number of tokens that were read.

    Raises:
        UsageError: the texts cannot be read, one of them is too short, or the tokenizer gives no beginning of a text.
        CheckpointError: the model cannot be loaded, holds or makes NaN or Inf, stores linear layers transposed, as GPT-2, or
            has no tensor for one of them.
        OutputError: `out` exists, belongs to an input or cannot be written.
    """
    report = progress or ignore_progress
    check_output_file(out, [model, *([] if texts is None else [texts])], overwrite=overwrite)
    read = None if texts is None else read_texts(texts)
    with quiet_transformers():
        loaded = load(model)
    if any(type(layer).__name__ == _TRANSPOSED for layer in loaded.model.modules()):
        raise CheckpointError(
            f"{model}: stores its weights transposed, as GPT-2 does, which null-space does not support; use another method"
        )
    refuse_not_finite(loaded.model.named_parameters(), f"{model}: the weights of")
    if read is None:
        report("writing texts", 0.0)
        try:
            sequences = own_texts(loaded, samples=samples, tokens=tokens, seed=seed)
        except DeltamendError:
            raise
        except (
            Exception
        ) as error:  # torch cannot sample from what overflowed, and a damaged config makes it raise of all kinds
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{model}: cannot write texts of its own ({reason}); give {option('texts')}"
            ) from error
    else:
        templated = bool(loaded.tokenizer.chat_template) if chat is None else chat
        with run_errors(model):
            examples = as_examples(read, loaded.tokenizer, chat=templated, max_tokens=tokens)
        sequences = [[*example.prompt, *example.answer] for example in examples]
    with run_errors(model):
        moments, same, count = input_moments(loaded.model, sequences, report)
    stored = stored_names(loaded.model, [*moments, *same], model)
    del loaded
    moments, same = _of_stored(moments, same, stored)
    if not moments:
        raise CheckpointError(f"{model}: has no linear layer, so null-space cannot be used with it; use another method")
    refuse_not_finite(((name, part) for name, one in moments.items() for part in one.parts), f"{model}: the inputs of")
    directions: dict[str, torch.Tensor] = {}

    def decompose(name: str) -> None:
        found = moments.pop(name).principal_directions()  # each C makes room for its eigenvectors
        directions[name], directions[f"{name}{EIGENVALUES}"] = found

    with Workers(None) as team:  # two decompositions side by side take less time than one on two threads
        team.map(decompose, list(moments))
    write_tensors(directions, out, described(same, directions))
    return count


def _of_stored(
    moments: dict[str, InputMoment], same: dict[str, str], stored: dict[str, str]
) -> tuple[dict[str, InputMoment], dict[str, str]]:
    """The moments by the names of the files, and which weight shares whose input; without what is no tensor of the files."""
    groups: dict[str, list[str]] = {}
    for name in [*moments, *same]:
        if name in stored:
            groups.setdefault(same.get(name, name), []).append(stored[name])
    shared = {other: first for first, *others in groups.values() for other in others}
    return {members[0]: moments[name] for name, members in groups.items()}, shared


def described(same: dict[str, str], directions: dict[str, torch.Tensor]) -> dict[str, str]:
    """The metadata of an activations file.

    Args:
        same: maps a weight to the weight whose input it shares.
        directions: the tensors of the file, by name.
    """
    shared = json.dumps(same, sort_keys=True)
    digest = content_digest({name: tensor.numpy() for name, tensor in directions.items()}, shared)
    return {"format": "pt", "activations": VERSION, SAME_INPUT: shared, CONTENT: digest}


def own_texts(loaded: LoadedModel, *, samples: int, tokens: int, seed: int) -> list[list[int]]:
    """The token ids of texts that the model writes from the beginning of a message, all of the same length.

    Sampled at temperature 1 from the top 95% of the probability (top-p). An end-of-turn token does not end a text, and the
    generation_config of the checkpoint is ignored.

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
            top_k=0,
            logits_processor=[lambda _, scores: keep_likeliest(scores, _TOP_P)],
            eos_token_id=None,
            suppress_tokens=_tokens_of_other_inputs(loaded.model.config.to_dict()) or None,
            pad_token_id=loaded.tokenizer.pad_token_id,
        )
    return [list(map(int, text)) for text in written]


def _tokens_of_other_inputs(config: dict[str, Any]) -> list[int]:
    """The tokens that stand for images, video or sound, by config.json; a text does not hold them."""
    return sorted({value for key, value in config.items() if _OTHER_INPUT.match(key) and isinstance(value, int)})


def opening_of_a_message(tokenizer: Any) -> list[int]:
    """The token ids that the chat template puts before a user's first message, or the token that begins a text.

    Raises:
        UsageError: there is neither, the template fails, or it changes the message.
    """
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": _MARK}]
        try:
            template = clockless_template(tokenizer)
            with limited_templates():
                text = tokenizer.apply_chat_template(
                    messages, tokenize=False, chat_template=template, date_string=_DATE
                )
        except Exception as error:  # a template is a program, and may raise what it likes
            raise UsageError(
                f"the chat template fails ({' '.join(str(error).split())[:200]}); give {option('texts')}"
            ) from error
        before, found, _ = text.partition(_MARK)
        if not found:
            raise UsageError(f"the chat template changes the user's message; give {option('texts')}")
        opening = plain_tokens(tokenizer, before)
    else:
        opening = []
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not opening and first is None:
        raise UsageError(
            f"the tokenizer has neither a chat template nor a token that begins a text; give {option('texts')}"
        )
    return opening or [first]
