"""Compute the diagonal of the Fisher information of a language model from texts, for the method `fisher`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deltamend.calibration.checks import refuse_not_finite
from deltamend.calibration.names_in_files import as_stored, stored_names
from deltamend.calibration.tensor_files import write_tensors
from deltamend.calibration.texts import as_examples, read_texts
from deltamend.checkpoint.output_checks import check_output_file
from deltamend.language_models.loading import LoadedModel, load, quiet_transformers, run_errors
from deltamend.language_models.training import Example
from deltamend.progress import Progress

if TYPE_CHECKING:
    import torch

_METADATA = {"format": "pt"}


def write_fisher(
    model: Path,
    texts: Path,
    out: Path,
    *,
    labels: Literal["sampled", "given"] = "sampled",
    chat: bool = False,
    max_tokens: int = 512,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write F = mean over texts of (∇ log p(ŷ | x))², entry by entry (Matena & Raffel 2022, equation 2).

    The gradient is that of the log-likelihood of a whole text. The model, its gradient and F are in memory in fp32, which
    takes three times the size of the model.

    Args:
        model: folder of the checkpoint.
        texts: JSONL file; see `CalibrationText`.
        out: safetensors file to write, float32, one tensor for each parameter under its name in the checkpoint.
        labels: "sampled" draws every predicted token from the model, which makes it the Fisher information; "given" takes
            the tokens of the text, which makes it the empirical one.
        chat: whether prompts go through the chat template.
        max_tokens: longer texts are cut.
        seed: for the tokens that are sampled; each text has its own stream.
        overwrite: whether a file that is there may be replaced.
        progress: called after each text.

    Returns:
        The number of texts.

    Raises:
        UsageError: the texts cannot be read, or one of them is too short.
        CheckpointError: the model cannot be loaded, holds or makes NaN or Inf, or has no tensor for a parameter.
        OutputError: `out` exists, belongs to an input or cannot be written.
    """
    check_output_file(out, [model, texts], overwrite=overwrite)
    read = read_texts(texts)
    with quiet_transformers():
        loaded = load(model)
    stored_names(loaded.model, [name for name, _ in loaded.model.named_parameters()], model)  # or it is refused now
    refuse_not_finite(loaded.model.named_parameters(), f"{model}: the weights of")
    with run_errors(model):
        examples = as_examples(read, loaded.tokenizer, chat=chat, max_tokens=max_tokens)
        squares = squared_gradients(loaded, examples, labels=labels, seed=seed, progress=progress)
    refuse_not_finite(squares.items(), f"{model}: the squared gradients of")
    write_tensors(as_stored(loaded.model, squares, model), out, _METADATA)
    return len(examples)


def squared_gradients(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    labels: Literal["sampled", "given"],
    seed: int,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Mean squared gradient of every parameter, float32, by its name; see `write_fisher`."""
    import torch

    parameters = dict(loaded.model.named_parameters())
    squares = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    for number, example in enumerate(examples):
        loss = _surprise(loaded.model, example, None if labels == "given" else (seed, number))
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                squares[name].addcmul_(parameter.grad, parameter.grad, value=1.0 / len(examples))
                parameter.grad = None
        if progress is not None:
            progress(f"text {number + 1}", (number + 1) / len(examples))
    return squares


def _surprise(model: torch.nn.Module, example: Example, draw: tuple[int, int] | None) -> torch.Tensor:
    """−log p of the tokens of the answer, in nats; with `draw`, a seed and the number of the text, of tokens that the model draws."""
    import torch

    ids = torch.tensor([[*example.prompt, *example.answer]])
    logits = model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1].float()
    if draw is None:
        drawn = torch.tensor(example.answer)
    else:
        digest = hashlib.sha256(f"{draw[0]}\0{draw[1]}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    return torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
